"""No operation on a shard takes more than 2 % of its state beside it, counted on the CPU."""

import ctypes
import gc
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kappaface_dist.checkpoint.tensors import load, one_state, write
from kappaface_dist.checkpoint.transplant import take_over
from kappaface_dist.head import ArcFace, KappaFace, PartialFC
from kappaface_dist.head.checks import BatchEvidence
from kappaface_dist.planning.memory_meter import MemoryMeter, num_bytes
from kappaface_dist.training.loss_guard import Evidence, likely_cause

C, D, B = 20_000, 512, 16
SHARE = 0.02
HEADS = {
    "kappaface": {"margin": KappaFace(shrinkage=2.0, decay=0.5)},
    "target cosine": {"margin": KappaFace(statistic="target_cosine")},
    "arcface": {"margin": ArcFace()},
}


def resident(field):
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split(f"{field}:")[1].split()[0]) * 1024


class Peak:
    """Context; the most bytes taken in it, by our own meter and by the system's."""

    def __enter__(self):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._before = resident("VmRSS")
        self._meter = MemoryMeter()
        self._meter.__enter__()
        return self

    def __exit__(self, *error):
        self._meter.__exit__(*error)
        self.tensors = self._meter.peak_bytes
        self.process = resident("VmHWM") - self._before


def named(tensors):
    """As a run's checkpoint names them."""
    return {f"head.{name}": tensor for name, tensor in tensors.items()}


def diagnose(head):
    """Of a loss that is NaN though images, labels, weights and embeddings are sound."""
    learner = SimpleNamespace(head=head, network=torch.nn.Linear(1, 1), config=None)
    evidence = Evidence(0, 1, -1, 1, (BatchEvidence(-1, 0, -1, B),))
    return likely_cause(learner, evidence, 0.1)


def step(head, **options):
    head(torch.randn(B, D).requires_grad_(), torch.arange(B)).backward()
    head.step(0.01, **options)


def operations(head, folder):
    """Each as (name, function); the first step makes what stays."""
    numbers = {"head": head.counters()}
    saved = folder / "step_1"

    def save():
        write(
            saved,
            one_state(named(head.replicated_state()), named(head.sharded_state()), C),
            numbers,
        )

    return [
        ("step", lambda: step(head)),
        ("skipped step", lambda: step(head, skip=torch.tensor(True))),
        ("evidence", lambda: head(torch.randn(B, D), torch.arange(B)) and head.batch_evidence()),
        ("diagnosis", lambda: diagnose(head)),
        ("centres by value", lambda: head.weight_KD),
        ("refresh", head.refresh),
        ("summary", head.summary),
        ("state", head.sharded_state),
        ("save", save),
        ("load", lambda: load(saved, {}, named(head.sharded_state()), C)),
        ("init", lambda: take_over(head, saved, None)),
    ]


@pytest.mark.parametrize("name", HEADS)
def test_no_operation_has_a_peak(name, tmp_path):
    head = PartialFC(C, D, chunk_bytes=1 << 18, **HEADS[name])
    size = num_bytes(head.sharded_state().values())
    step(head)
    found = {}
    for operation, function in operations(head, tmp_path):
        with Peak() as peak:
            function()
        found[operation] = peak.tensors / size, peak.process / size
    # Of the diagnosis the system's count too: a norm makes its copies inside, unseen by the meter.
    # Elsewhere that count has pages of mapped files in it, and pages that are touched for the first
    # time.
    assert found["diagnosis"][1] <= 0.2
    too_much = {k: f"{tensors:.1%}" for k, (tensors, _) in found.items() if tensors > SHARE}
    assert not too_much
