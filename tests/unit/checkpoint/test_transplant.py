"""A new head that takes over an earlier one's identities and running values."""

import pytest
import torch

from kappaface_dist.checkpoint.tensors import one_state, write
from kappaface_dist.checkpoint.transplant import TAKEN_ROWS, take_over
from kappaface_dist.head import AdaFace, ArcFace, CurricularFace, PartialFC

C, D = 2 * TAKEN_ROWS + 7, 4


def earlier_head(margin, folder):
    head = PartialFC(C, D, margin, seed=1)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        embedding_BD = torch.randn(8, D, generator=generator).requires_grad_()
        head(embedding_BD, torch.randint(C, (8,), generator=generator)).backward()
        head.step(0.1)
    sharded, replicated = (
        {f"head.{name}": tensor for name, tensor in tensors.items()}
        for tensors in (head.sharded_state(), head.replicated_state())
    )
    write(folder, one_state(replicated, sharded, C), {"head": head.counters()})
    return head


@pytest.mark.parametrize(
    "margin", [AdaFace(), CurricularFace(), ArcFace()], ids=lambda margin: type(margin).__name__
)
def test_nothing_that_the_head_remembers_is_lost(margin, tmp_path):
    old, head = earlier_head(margin, tmp_path / "step_3"), PartialFC(C, D, margin, seed=2)
    assert all((old.replicated_state()[k] != v) for k, v in head.replicated_state().items())
    take_over(head, tmp_path / "step_3", None)
    for ours, expected in (
        (head.sharded_state(), old.sharded_state()),
        (head.replicated_state(), old.replicated_state()),
    ):
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    assert head.counters() == old.counters()


def test_running_values_that_the_earlier_head_had_not_are_named(tmp_path, caplog):
    old = earlier_head(ArcFace(), tmp_path / "step_3")
    head = PartialFC(C, D, AdaFace(), seed=2)
    start = {name: tensor.clone() for name, tensor in head.replicated_state().items()}
    take_over(head, tmp_path / "step_3", None)
    assert torch.equal(head.weight_KD, old.weight_KD)
    assert head.replicated_state() == start
    for name in start:
        assert f"has no head.{name}: it starts afresh" in caplog.text
