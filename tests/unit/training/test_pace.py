"""By how much a rank is behind the others, and when that is worth a warning."""

import torch

from kappaface_dist.training.pace import LONG, Pace, slowest


def test_by_how_much_is_counted_from_the_median_of_the_others():
    assert slowest([1.0, 1.0, 1.5, 1.0]) == (2, 0.5)
    assert slowest([3.0, 2.0]) == (0, 0.5)
    assert slowest([1.0, 1.0, 2.0, 4.0, 1.0]) == (3, 3.0)
    assert slowest([0.0, 0.0])[1] == -1.0  # nothing was measured: nobody is behind


def numbers(rank, behind):
    return {"slowest_rank": rank, "slowest_rank_behind": behind}


def test_a_warning_is_for_one_rank_that_stays_slow():
    watched = Pace(torch.device("cpu"))
    changing = [watched.warning(numbers(rank % 2, 0.5)) for rank in range(40)]
    within = [watched.warning(numbers(3, 0.19)) for _ in range(40)]
    assert not any([*changing, *within, watched.warning({"data_wait_share": 0.5})])
    said = [watched.warning(numbers(3, 0.21)) for _ in range(40)]
    assert [place for place, text in enumerate(said) if text] == [LONG - 1]
    assert "rank 3 " in said[LONG - 1]
    # Once it has been well in between, it is said again.
    assert watched.warning(numbers(3, 0.0)) is None
    assert any(watched.warning(numbers(3, 0.21)) for _ in range(LONG))


def test_one_process_alone_has_nobody_to_be_compared_with():
    alone = Pace(torch.device("cpu"))
    with alone.phase("backbone_forward"):
        pass
    assert alone.compare(0.25, 1.0) == {"data_wait_share": 0.25}
