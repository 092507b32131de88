"""A new head that takes over an earlier one's identities and running values."""

import numpy as np
import pytest
import torch

from kappaface_dist.checkpoint.tensors import one_state, write
from kappaface_dist.checkpoint.transplant import TAKEN_ROWS, take_over
from kappaface_dist.head import AdaFace, ArcFace, CurricularFace, PartialFC

C, D = 2 * TAKEN_ROWS + 7, 4


def earlier_head(margin, folder, sub_centres=1):
    head = PartialFC(C, D, margin, seed=1, sub_centres=sub_centres)
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


def test_a_head_of_one_centre_a_class_takes_the_dominant_of_several(tmp_path, caplog):
    """Centre and momentum by numpy, in another order of the classes; margin and values as ever."""
    caplog.set_level("INFO")
    old = earlier_head(AdaFace(), tmp_path / "step_3", sub_centres=3)
    order = torch.randperm(C, generator=torch.Generator().manual_seed(0))
    lines = [f"{before}\t{now}" for now, before in enumerate(order.tolist())]
    (tmp_path / "map.tsv").write_text("\n".join(lines))
    head = PartialFC(C, D, AdaFace(), seed=2)
    take_over(head, tmp_path / "step_3", str(tmp_path / "map.tsv"))
    state = {name: tensor.numpy() for name, tensor in old.sharded_state().items()}
    dominant_C = state["statistics.chosen"].argmax(axis=1)
    assert set(dominant_C) == {0, 1, 2}
    for name in ("weight", "optimizer.momentum"):
        expected = state[name][range(C), dominant_C][order]
        assert np.array_equal(head.sharded_state()[name].numpy(), expected)
    assert head.replicated_state() == old.replicated_state()
    assert "of the 3 centres of each class of" in caplog.text
    same = PartialFC(C, D, AdaFace(), seed=2, sub_centres=3)
    take_over(same, tmp_path / "step_3", None)
    for name, tensor in same.sharded_state().items():
        assert np.array_equal(tensor.numpy(), state[name])


@pytest.mark.parametrize(
    ("earlier", "now", "remedy"),
    [(1, 3, "set it to 1$"), (3, 2, "set it to 3, or to 1 for the dominant one$")],
)
def test_another_number_of_centres_a_class_is_refused(tmp_path, earlier, now, remedy):
    earlier_head(ArcFace(), tmp_path / "step_3", sub_centres=earlier)
    head = PartialFC(C, D, ArcFace(), sub_centres=now)
    sentence = rf"has {earlier} centres a class, and head\.sub_centres is {now}: {remedy}"
    with pytest.raises(ValueError, match=sentence):
        take_over(head, tmp_path / "step_3", None)
