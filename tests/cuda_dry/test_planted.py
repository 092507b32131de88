"""A fault of each kind, planted in the source itself: the tests beside this one notice it.

Those of streams are in unit/data/loading/test_dali.py.
"""

import pytest

from tests.cuda_dry import test_around, test_operations, test_step
from tests.cuda_dry.conftest import on_ranks
from tests.planted import planted


def a_step():
    test_step.test_a_step_waits_where_the_readme_says("as it is", 8)


def diagnosis():
    with on_ranks(1) as gpu:
        test_around.test_looking_for_the_cause_takes_no_copy_of_the_centres(gpu)


HEAD = "kappaface_dist/head"
# By name: file, what it says, what it would say, the test that notices it, and in which words.
FAULTS = {
    "a tensor on the host in a step": (
        f"{HEAD}/softmax/second_pass.py",
        "beyond_X = torch.full_like(column_X, len(batches[0].rows))",
        "beyond_X = torch.full(column_X.shape, len(batches[0].rows))",
        *(a_step, "cuda:0"),
    ),
    "a value that is read in a step": (
        f"{HEAD}/partial_fc.py",
        "loss=torch.where(valid_G.all(), result.loss, torch.nan)",
        "loss=result.loss if valid_G.all().item() else result.loss * torch.nan",
        *(a_step, "partial_fc.py"),
    ),
    "a wait for a mask in a step": (
        f"{HEAD}/margins/concentration.py",
        "value_GX = value_GX.where(used_G[:, None], 0.0)",
        "value_GX[~used_G] = 0.0",
        *(a_step, "concentration.py"),
    ),
    "a copy of the centres in a step": (
        f"{HEAD}/partial_fc.py",
        "[batch.unscaled(loss_scale) for batch in pending]",
        "[batch.unscaled(loss_scale) for batch in pending]; kept = self.weight_KD.clone()",
        *(test_operations.test_buffers_of_a_step_are_those_of_three_chunks, "head_buffers"),
    ),
    "a copy of the centres in a diagnosis": (
        f"{HEAD}/checks.py",
        "return all(bool(rows_RD.isfinite().all()) for rows_RD in weight_KD.split(step))",
        "return bool(weight_KD.clone().isfinite().all())",
        *(diagnosis, "peak_bytes"),
    ),
    "a type that NCCL does not reduce": (
        "kappaface_dist/parallel/ranks.py",
        "dist.all_reduce(x)",
        "whole = x.to(torch.int16); dist.all_reduce(whole); x.copy_(whole)",
        *(a_step, "int16"),
    ),
    "a reduction in float64": (
        "kappaface_dist/parallel/ranks.py",
        "dist.all_reduce(x)",
        "wide = x.double(); dist.all_reduce(wide); x.copy_(wide)",
        *(a_step, "all_reduce"),
    ),
    "a collective more": (
        f"{HEAD}/joint_loss.py",
        "loss = torch.stack([f * own for f, own in zip(factors, losses, strict=True)]).sum()",
        "loss = parallel.all_reduce_sum(sum(f * own for f, own in zip(factors, losses)))",
        *(a_step, "all_reduce"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_source_is_noticed(fault):
    path, before, after, notices, words = FAULTS[fault]
    with planted(path, before, after), pytest.raises((AssertionError, RuntimeError), match=words):
        notices()
