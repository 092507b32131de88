"""How the ranks find each other when torchrun starts them again.

torchrun (2.13) keeps one key-value store over its restarts, in which the addresses of dead ranks
still stand: a rank that starts sooner than its peers takes them for those of its peers, and the
group fails or hangs. So the ranks first agree on a name for this start, and use keys under it only.
"""

import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

POLL_SECONDS = 0.02


def connect(timeout: timedelta) -> dist.TCPStore:
    """A connection of its own to the store that torchrun keeps."""
    return dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timeout,
    )


def store_of_this_start(timeout: timedelta) -> dist.Store | None:
    """The store with keys of this start only, or None where torchrun keeps none; collective.

    Raises:
        RuntimeError: a rank does not come within timeout.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = connect(timeout)
    return dist.PrefixStore(agree_on_name(store, rank, world_size, timeout), store)


def agree_on_name(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """A name that all ranks of this start have, and no rank of an earlier one.

    Each rank presents itself under a name never used before. Rank 0 answers every name it sees,
    also those of the dead, until all ranks have confirmed that they got its answer.
    """
    own = uuid.uuid4().hex
    if rank != 0:
        store.set(f"present/{rank}", own)
        start = store.get(f"answer/{own}").decode()  # waits for it
        store.set(f"confirmed/{start}/{rank}", "yes")
        return start
    missing = set(range(1, world_size))
    deadline = time.monotonic() + timeout.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"present/{other}"]):
                store.set(f"answer/{store.get(f'present/{other}').decode()}", own)
            if store.check([f"confirmed/{own}/{other}"]):
                missing.remove(other)
        if missing and time.monotonic() > deadline:
            raise RuntimeError(
                f"ranks {sorted(missing)} of {world_size} have not started within"
                f" {timeout.total_seconds() / 60:.1f} minutes"
            )
        time.sleep(POLL_SECONDS)
    return own
