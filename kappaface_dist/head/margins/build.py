"""A margin from its name and settings, as a configuration file gives them."""

import dataclasses
import difflib
from typing import Any

from kappaface_dist.config.rules import check_finite
from kappaface_dist.head.margins.adaptive import AdaFace, CurricularFace, ElasticFace, MagFace
from kappaface_dist.head.margins.angular import ArcFace, Combined, CosFace, NormFace, SphereFace
from kappaface_dist.head.margins.base import Margin
from kappaface_dist.head.margins.kappaface import KappaFace

MARGINS: dict[str, type[Margin]] = {
    "adaface": AdaFace,
    "arcface": ArcFace,
    "combined": Combined,
    "cosface": CosFace,
    "curricularface": CurricularFace,
    "elasticface": ElasticFace,
    "kappaface": KappaFace,
    "magface": MagFace,
    "normface": NormFace,
    "sphereface": SphereFace,
}

WANTED = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}


def build_margin(name: str, **settings: Any) -> Margin:
    """The margin of that name; settings that are not given keep the published values.

    Raises:
        ValueError: an unknown name or setting (with the closest known one), a value of the wrong
            type or out of its range.
    """
    if name not in MARGINS:
        raise ValueError(f"margin.name is {name!r}{_closest(str(name), list(MARGINS))}")
    kind = MARGINS[name]
    types: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(kind)}
    for key, value in settings.items():
        if key not in types:
            raise ValueError(f"{name} has no setting margin.{key}{_closest(key, list(types))}")
        if not _fits(value, types[key]):
            raise ValueError(f"margin.{key} is {value!r}: it must be {WANTED[types[key]]}")
        if types[key] in (int, float):
            check_finite(f"margin.{key}", value)
    return kind(**settings)


def _fits(value: Any, wanted: Any) -> bool:
    if wanted is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    return type(value) is wanted


def _closest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {close[0]}? It" if close else "it"
    return f": {hint} must be one of {', '.join(sorted(known))}"
