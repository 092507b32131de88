"""Who was told to stop, and with what code each rank ends."""

import os
import signal

import pytest

from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.parallel import signals
from kappaface_dist.parallel.signals import StopSignal, code_after_stop
from tests.processes import run_on_ranks


def stop_on_nodes(nodes, told_rank):
    """Each rank on the node given for it; a signal reaches one of them. (told here, steps)."""
    os.environ["GROUP_RANK"] = str(nodes[parallel.rank()])
    with StopSignal() as stop:
        for step in range(10):
            if step == 2 and parallel.rank() == told_rank:
                os.kill(os.getpid(), signal.SIGTERM)
            if stop.requested():
                return stop.told_here(), step
    return None


@pytest.mark.parametrize(
    ("nodes", "told_rank", "expected"),
    [
        ([0, 0, 1], 2, [False, False, True]),
        ([0, 0, 1], 1, [True, True, False]),  # one rank of a node is as good as all
        ([0, 0], 0, [True, True]),
    ],
)
def test_all_ranks_stop_and_each_knows_whether_its_node_was_told(nodes, told_rank, expected):
    found = run_on_ranks(len(nodes), stop_on_nodes, nodes, told_rank)
    assert [told for told, _ in found] == expected
    assert {step for _, step in found} == {3}


def test_torchrun_hears_of_an_end_only_where_it_was_told(monkeypatch):
    waited = []
    monkeypatch.setattr(signals.time, "sleep", waited.append)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert [code_after_stop(told, 75) for told in (True, False)] == [75, 75]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    assert code_after_stop(True, 75) == 0
    assert waited == []
    assert code_after_stop(False, 75) == 75
    # Not even where the user wants a 0: torchrun would take the run for finished.
    assert code_after_stop(False, 0) != 0
    assert waited == [signals.OWN_TORCHRUN_SECONDS] * 2
