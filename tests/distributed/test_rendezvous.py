"""Ranks of one start find each other, though those of earlier starts have left their names."""

import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from kappaface_dist.parallel.rendezvous import agree_on_name

TIMEOUT = timedelta(seconds=20)


def test_each_start_gets_one_name_of_its_own():
    store = dist.HashStore()
    names = []
    for late in (1, 0, 2):  # the rank that comes last sees what the others have left
        found = {}

        def join(rank, found=found):
            found[rank] = agree_on_name(store, rank, 3, TIMEOUT)

        threads = {rank: threading.Thread(target=join, args=(rank,)) for rank in range(3)}
        for rank, thread in threads.items():
            if rank != late:
                thread.start()
        time.sleep(0.2)
        assert 0 not in found, "rank 0 went on without the late one"
        threads[late].start()
        for thread in threads.values():
            thread.join(20)
        assert found.keys() == {0, 1, 2}
        assert len(set(found.values())) == 1
        names += set(found.values())
    assert len(set(names)) == 3


def test_a_rank_that_never_comes_is_named():
    with pytest.raises(RuntimeError, match=r"ranks \[1\] of 2 have not started"):
        agree_on_name(dist.HashStore(), 0, 2, timedelta(seconds=0.1))
