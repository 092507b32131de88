"""A job that cannot fit is refused before anything of its size is made."""

import pytest

from kappaface_dist.config.keys import Backbone, Checkpoint, Config, Data
from kappaface_dist.planning.fitting import check_fits
from kappaface_dist.planning.memory import JobSize
from kappaface_dist.planning.pretend_group import pretend_ranks

GB = 10**9
# 12.5 million rows a rank: 512 numbers of centres, momentum and resultants, five vectors.
LARGE = JobSize(100_000_000, 100_000_000, 8)
STATE = 12_500_000 * (3 * 512 + 5) * 4


def check(size, gpu_bytes, node_bytes, ranks_here, **checkpoint):
    config = Config(
        data=Data(train="none", batch_size=8, image_size=32),
        backbone=Backbone(name="tiny"),
        checkpoint=Checkpoint(**checkpoint),
    )
    with pretend_ranks(size.num_ranks):
        return check_fits(config, size, gpu_bytes, node_bytes, ranks_here)


def test_a_gpu_that_is_too_small_is_said():
    with pytest.raises(ValueError, match=r"takes 7\d\.\d GB of each GPU, which has 80\.0 GB"):
        check(LARGE, 80 * GB, 4000 * GB, 8)
    fits = check(LARGE, 141 * GB, 4000 * GB, 8)
    assert STATE / 1e6 < fits["planned_megabytes_per_rank"] < 1.1 * STATE / 1e6


def test_copies_beyond_the_nodes_memory_are_said():
    with pytest.raises(ValueError, match=r"6\d\d\.\d GB of it are copies for checkpoints: lower"):
        check(LARGE, 141 * GB, 512 * GB, 8)
    assert check(LARGE, 141 * GB, 512 * GB, 8, host_bytes=10 * GB)


def test_on_a_cpu_state_and_copies_share_the_memory():
    small = JobSize(1_000_000, 1_000_000, 2)
    state = 1_000_000 * (3 * 512 + 5) * 4
    with pytest.raises(ValueError, match=r"ranks here \(2\) take 12\.\d GB"):
        check(small, None, int(1.5 * state), 2)
    assert check(small, None, 3 * state, 2)
    assert check(small, None, int(1.5 * state), 2, host_bytes=0)
