"""Several streams as one: every dataset's images exactly, whatever the batches were before."""

import numpy as np
import torch

from kappaface_dist.data.loading.loader import Batch
from kappaface_dist.data.loading.together import Streams, Together


class Counting:
    """Stands for a loader: its images are their numbers in its stream."""

    def __init__(self, size, slots):
        self.size, self.slots, self.closed = size, slots, False
        self.num_read = self.num_corrupt = 1
        self.corrupt = [("a record", "a reason")]

    def batches(self, position, num_steps):
        for step in range(num_steps):
            number_B = torch.arange(self.size) + position + step * self.size
            slot_B = number_B.int() if self.slots else None
            yield Batch(number_B.view(-1, 1, 1, 1).float(), number_B, number_B // 10, slot_B)

    def close(self):
        self.closed = True

    def advise(self, waited):
        return "more threads" if self.slots else None


def build(*counts):
    names = "abc"[: len(counts)]
    loaders = {name: Counting(n, name == "b") for name, n in zip(names, counts, strict=True)}
    return Together(loaders, Streams({name: one.size for name, one in loaders.items()})), loaders


def test_each_stream_goes_on_where_it_was_with_other_shares():
    first, _ = build(3, 1)
    seen = {"a": [], "b": []}
    position = 0
    for counts, num_steps in (((3, 1), 5), ((1, 6), 3), ((2, 2), 2)):
        now, _ = build(*counts)
        now.streams.go_on(position, first.streams.at(position))
        for batch in now.batches(position, num_steps):
            seen["a"] += batch.label_B[: counts[0]].tolist()
            seen["b"] += batch.label_B[counts[0] :].tolist()
        position += num_steps * sum(counts)
        first = now
    assert seen == {"a": list(range(15 + 3 + 4)), "b": list(range(5 + 18 + 4))}
    assert first.streams.at(position) == {"a": 22, "b": 27}


def test_a_batch_is_one_after_another():
    loader, loaders = build(2, 3)
    (batch,) = loader.batches(0, 1)
    assert batch.label_B.tolist() == [0, 1, 0, 1, 2]
    assert batch.image_B3HW.flatten().tolist() == [0, 1, 0, 1, 2]
    assert batch.slot_B.tolist() == [0, 0, 0, 1, 2]
    assert batch.slot_B.dtype == torch.int32
    assert batch.epoch_B.tolist() == [0] * 5
    assert (loader.num_read, loader.num_corrupt, len(loader.corrupt)) == (2, 2, 2)
    assert loader.advise(0.5) == "more threads"
    loader.close()
    assert all(one.closed for one in loaders.values())


def test_one_stream_is_handed_on_as_it_is():
    loader, loaders = build(4)
    for batch, own in zip(loader.batches(8, 2), loaders["a"].batches(8, 2), strict=True):
        np.testing.assert_array_equal(batch.label_B, own.label_B)
        assert batch.slot_B is None
    loader.streams.go_on(7, {"a": 7})  # of batches of another size
    assert loader.streams.at(15) == {"a": 15}
