"""The sharded classification head."""

from kappaface_dist.head.heads import Heads
from kappaface_dist.head.margins import (
    AdaFace,
    ArcFace,
    Combined,
    CosFace,
    CurricularFace,
    ElasticFace,
    KappaFace,
    MagFace,
    Margin,
    NormFace,
    SphereFace,
    build_margin,
)
from kappaface_dist.head.partial_fc import PartialFC
from kappaface_dist.head.softmax.row_update import AdamWRows, RowOptimizer, SGDRows

__all__ = [
    "AdaFace",
    "AdamWRows",
    "ArcFace",
    "Combined",
    "CosFace",
    "CurricularFace",
    "ElasticFace",
    "Heads",
    "KappaFace",
    "MagFace",
    "Margin",
    "NormFace",
    "PartialFC",
    "RowOptimizer",
    "SGDRows",
    "SphereFace",
    "build_margin",
]
