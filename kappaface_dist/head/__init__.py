"""The sharded classification head."""

from kappaface_dist.head.margins import ArcFace, CosFace, KappaFace, Margin, build_margin
from kappaface_dist.head.partial_fc import PartialFC
from kappaface_dist.head.row_update import AdamWRows, RowOptimizer, SGDRows

__all__ = [
    "AdamWRows",
    "ArcFace",
    "CosFace",
    "KappaFace",
    "Margin",
    "PartialFC",
    "RowOptimizer",
    "SGDRows",
    "build_margin",
]
