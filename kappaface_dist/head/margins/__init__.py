"""Margins: from the target cosine to the target logit, one small class for each published one."""

from kappaface_dist.head.margins.adaptive import AdaFace, CurricularFace, ElasticFace, MagFace
from kappaface_dist.head.margins.angular import ArcFace, Combined, CosFace, NormFace, SphereFace
from kappaface_dist.head.margins.base import Images, Margin, MarginState, TargetLogit, target_logit
from kappaface_dist.head.margins.build import MARGINS, build_margin
from kappaface_dist.head.margins.kappaface import KappaFace

__all__ = [
    "MARGINS",
    "AdaFace",
    "ArcFace",
    "Combined",
    "CosFace",
    "CurricularFace",
    "ElasticFace",
    "Images",
    "KappaFace",
    "MagFace",
    "Margin",
    "MarginState",
    "NormFace",
    "SphereFace",
    "TargetLogit",
    "build_margin",
    "target_logit",
]
