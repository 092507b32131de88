"""What a step tells the head of its images."""

import torch

from kappaface_dist.data.loading.loader import Batch
from kappaface_dist.training.marks import epochs_later

NO_IMAGE = torch.zeros(0, 3, 2, 2)


def batch(*epochs):
    label_B = torch.zeros(len(epochs), dtype=torch.int64)
    return Batch(NO_IMAGE, label_B, torch.tensor(epochs))


def test_epochs_are_counted_from_the_steps_first():
    batches = [batch(4, -1, 4), batch(5, 6, -1)]
    assert epochs_later(batches, [4]).tolist() == [0, -1, 0, 1, 2, -1]
    assert epochs_later(batches, [4]).dtype == torch.int8


def test_what_a_byte_cannot_hold_does_not_count():
    assert epochs_later([batch(3, 130, 131, 400)], [3]).tolist() == [0, 127, -1, -1]


def test_batches_without_epochs():
    assert epochs_later([batch(0), Batch(NO_IMAGE, torch.zeros(0))], [0]) is None


def test_each_dataset_counts_from_its_own_epoch():
    batches = [batch(4, -1, 9), batch(5, 4, 8)]
    assert epochs_later(batches, [4, 8], (2, 1)).tolist() == [0, -1, 1, 1, 0, 0]
