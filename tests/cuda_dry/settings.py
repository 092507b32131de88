"""Under which settings steps run on fake tensors, and which settings do not, with the reason."""

from dataclasses import fields
from typing import Any, get_type_hints

from kappaface_dist.config.checks import CHOICES
from kappaface_dist.config.file import load_config
from kappaface_dist.config.keys import Config
from kappaface_dist.head.margins.kappaface import CHOICES as STATISTICS
from kappaface_dist.head.margins.kappaface import KappaFace
from tests.cuda_dry.lines import ROOT

BASE = ROOT / "configs" / "glint360k.yaml"
# What is changed of BASE.
SETTINGS: dict[str, list[str]] = {
    "as it is": [],
    "fp32": ["precision=fp32", "head.dtype=fp32"],
    "fp16": ["precision=fp16"],
    "plain products": ["head.fused=false"],
    "kernels that write logits": ["head.fused=chunks"],
    "kernels that write none": ["head.fused=tiles", "head.logit_cache_bytes=0"],
    "no cache": ["head.logit_cache_bytes=0"],
    "filter": ["head.filter_threshold=0.4"],
    "bf16 momentum": ["head.momentum_dtype=bf16"],
    "bf16 centres": ["head.centre_dtype=bf16", "head.momentum_dtype=none"],
    "bf16 centres, plain": ["head.centre_dtype=bf16", "head.fused=false"],
    "adamw": ["optimizer.name=adamw"],
    "adamw, a moment a class": ["optimizer.name=adamw", "head.second_moment=row"],
    "sampled": ["head.sample_rate=0.1"],
    "accumulated": ["optimizer.accumulate=3"],
    "sampled and accumulated": ["optimizer.accumulate=2", "head.sample_rate=0.1"],
    "cached embeddings": ["optimizer.accumulate=2", "optimizer.cache_embeddings=true"],
    "skip_mass": ["head.skip_mass=0.01"],
    "gradients in bf16": ["backbone.gradient_dtype=bf16"],
    "another memory format": ["backbone.channels_last=false"],
    "checkpointing": ["backbone.checkpointing=true"],
    "target cosines": ["margin.statistic=target_cosine", "margin.estimator=plugin"],
    "bf16 statistics": ["margin.statistic_dtype=bf16", "margin.standardise=robust"],
    "short windows": ["margin.refresh_steps=1", "margin.decay=0.5"],
    "empirical Bayes": ["margin.estimator=empirical_bayes", "margin.standardise=logarithmic"],
    "released": [
        *("margin.estimator=released", "margin.standardise=released"),
        *("margin.first_window=one", "margin.beyond_pi=cosine"),
    ],
    "a memory": ["margin.source=memory"],
    "trust in labels": ["head.robust=both"],
    "sub-centres": ["head.sub_centres=3", "head.sample_rate=0.3"],
    "an encoder": ["margin.source=encoder"],
    "two datasets": [
        "data.train={a: {path: x, share: 0.75}, b: {path: x, share: 0.25, margin: {name: arcface}}}"
    ],
    "two datasets, one sampled": [
        "data.train={a: {path: x, share: 0.5, sample_rate: 0.1}, b: {path: x, share: 0.5}}",
        *("optimizer.accumulate=2", "data.train.b.margin.source=memory"),
    ],
}
# By key, or key and value.
EXCUSED: dict[str, str] = {
    "backbone.name": "the larger ones are more of the same: one of each kind in test_compile.py",
    "backbone.compile": "torch.compile does not see fake tensors: traced by test_compile.py",
    "backbone.static_graph=True": "of DDP's reducer, which needs torch's engine (pretend_ddp.py):"
    " run on the CPU by distributed/test_data_parallel.py",
    "backbone.sync_batchnorm=True": "a test of its own: test_step.py",
    "optimizer.name=lamb": "apex's, which is no dependency: a stand-in in unit tests",
    "optimizer.implementation=apex": "apex is no dependency: a stand-in in unit tests",
    "head.robust=loss": "a part of both",
    "head.robust=statistics": "a part of both",
    "head.fused=True": "an older word for auto",
    "optimizer.schedule": "a number of the host's: unit/training/test_optim.py",
    "distill.kind": "a test of its own, with a teacher: test_step.py",
    "distill.margin_loss": "a test of its own, with a teacher: test_step.py",
}
SECTIONS = ("backbone", "head", "optimizer", "distill", "precision")


def choices() -> dict[str, set[Any]]:
    """Every value of the keys that have a few only, of those that change a step."""
    found = {key: set(values) for key, values in CHOICES.items() if key.split(".")[0] in SECTIONS}
    for section, kind in get_type_hints(Config).items():
        if section in SECTIONS and section != "precision":
            kinds = get_type_hints(kind)
            switches = [f"{section}.{f.name}" for f in fields(kind) if kinds[f.name] is bool]
            found |= {key: {True, False} for key in switches}
    return found | {f"margin.{key}": set(values) for key, values in STATISTICS.items()}


def values_run() -> dict[str, set[Any]]:
    """Those that SETTINGS take."""
    found: dict[str, set[Any]] = {key: set() for key in choices()}
    for overrides in SETTINGS.values():
        config = load_config(BASE, ["data.train=none", *overrides])
        margin = vars(KappaFace()) | config.margin
        for key, values in found.items():
            section, _, name = key.partition(".")
            if section == "margin":
                values.add(margin[name])
            else:
                part = getattr(config, section)
                values.add(getattr(part, name) if name else part)
    return found


def missing() -> list[str]:
    """Settings that are neither run nor excused, as key=value."""
    run = values_run()
    return [
        f"{key}={value}"
        for key, values in choices().items()
        for value in sorted(values - run[key], key=str)
        if key not in EXCUSED and f"{key}={value}" not in EXCUSED
    ]
