"""Margins by name: settings, refusals and presets."""

import dataclasses
import math
from pathlib import Path

import pytest
import yaml

from kappaface_dist.head import (
    KappaFace,
    build_margin,
)
from kappaface_dist.head.margins import MARGINS as CLASSES


@pytest.mark.parametrize("name", CLASSES)
def test_built_by_name_with_published_settings(name):
    assert build_margin(name) == CLASSES[name]()
    assert build_margin(name, scale=30).scale == 30


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("arcfase", {}, r"margin\.name is 'arcfase': did you mean arcface\? It must be one of ada"),
        ("arcface", {"margn": 0.5}, r"arcface has no setting margin\.margn: did you mean margin\?"),
        ("arcface", {"margin": "big"}, r"margin\.margin is 'big': it must be a number"),
        ("arcface", {"margin": True}, r"margin\.margin is True: it must be a number"),
        ("arcface", {"margin": 28.6}, r"margin\.margin is 28\.6: an angle in radians"),
        ("arcface", {"margin": math.nan}, r"margin\.margin is nan"),
        ("cosface", {"margin": 1.1}, r"margin\.margin is 1\.1: a difference of cosines"),
        ("combined", {"m1": 0.0}, r"margin\.m1 is 0\.0"),
        ("combined", {"m2": -0.1}, r"margin\.m2 is -0\.1"),
        ("combined", {"m3": 2.0}, r"margin\.m3 is 2\.0"),
        ("sphereface", {"margin": 0.5}, r"margin\.margin is 0\.5: a factor of the angle"),
        ("adaface", {"h": -1.0}, r"margin\.h is -1\.0"),
        ("magface", {"upper_norm": 5.0}, r"margin\.upper_norm is 5\.0: it must exceed lower_norm"),
        ("magface", {"upper_margin": 0.1}, r"margin\.upper_margin is 0\.1"),
        ("curricularface", {"cosine_decay": 2.0}, r"margin\.cosine_decay is 2\.0"),
        ("elasticface", {"kind": "both"}, r"margin\.kind is 'both': choose angle or cosine"),
        ("elasticface", {"kind": "cosine", "margin": 1.2}, r"margin\.margin is 1\.2"),
        ("kappaface", {"estimator": "biased"}, r"margin\.estimator is 'biased': choose unbiased"),
        ("kappaface", {"statistic": "mean"}, r"margin\.statistic is 'mean': choose resultant"),
        ("kappaface", {"first_window": 1}, r"margin\.first_window is 1: it must be a word"),
        ("kappaface", {"refresh_steps": 1.5}, r"margin\.refresh_steps is 1\.5: it must be a whole"),
        ("kappaface", {"margin": 0.0}, r"margin\.margin is 0\.0"),
        ("kappaface", {"decay": 1.0}, r"margin\.decay is 1\.0"),
        ("kappaface", {"shrinkage": -1.0}, r"margin\.shrinkage is -1\.0"),
        ("kappaface", {"temperature": -0.4}, r"margin\.temperature is -0\.4"),
        ("kappaface", {"concentration_share": 1.2}, r"margin\.concentration_share is 1\.2"),
        ("kappaface", {"max_resultant": 1.0}, r"margin\.max_resultant is 1\.0"),
        ("kappaface", {"count_scale": 0.9}, r"margin\.count_scale is 0\.9"),
        (
            "kappaface",
            {"source": "queue"},
            r"margin\.source is 'queue': choose batch or encoder or",
        ),
        (
            "kappaface",
            {"source": "memory", "statistic": "target_cosine"},
            r"margin\.source is 'memory': statistic target_cosine needs",
        ),
        (
            "kappaface",
            {"estimator": "released", "decay": 0.5},
            r"margin\.estimator is 'released': its window is one epoch",
        ),
        (
            "kappaface",
            {"estimator": "empirical_bayes", "shrinkage": 2.0},
            r"margin\.shrinkage is 2\.0: that estimate is drawn to the mean already",
        ),
        (
            "kappaface",
            {"estimator": "empirical_bayes", "statistic": "target_cosine"},
            r"margin\.estimator is 'empirical_bayes': it is of statistic resultant",
        ),
    ],
)
def test_what_build_margin_refuses(name, settings, message):
    with pytest.raises(ValueError, match=message):
        build_margin(name, **settings)


@pytest.mark.parametrize(
    ("preset", "differs"),
    [
        ("kappaface", {}),
        (
            "kappaface_released",
            {
                "estimator": "released",
                "standardise": "released",
                "max_resultant": 0.99999,
                "first_window": "one",
                "count_scale": 1.05,
                "beyond_pi": "cosine",
            },
        ),
        (
            "kappaface_paper",
            {"estimator": "plugin", "first_window": "one", "concentration_share": 0.3},
        ),
    ],
)
def test_presets(preset, differs):
    """What each differs in from the default; kappaface.yaml spells out every default."""
    path = Path(__file__).parents[4] / "configs" / "margins" / f"{preset}.yaml"
    section = yaml.safe_load(path.read_text(encoding="utf-8"))["margin"]
    margin = build_margin(**section)
    assert margin == dataclasses.replace(KappaFace(), **differs)
    if not differs:
        assert section.keys() - {"name"} == set(dataclasses.asdict(margin)) - {"straight_through"}
