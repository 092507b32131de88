"""Which of a class's centres its images are at."""

import pytest
import torch

from kappaface_dist.head.margins.chosen_centres import ChosenCentres, dominant_centres

CPU = torch.device("cpu")


def test_counts_of_an_epoch_outweigh_those_before():
    chosen = ChosenCentres(3, 2, CPU)
    assert chosen.summary() == {}
    # Class 0 at its second centre twice, class 2 at its first once; the last is another rank's.
    chosen.add(torch.tensor([1, 1, 4, 5]), torch.tensor([True, True, True, False]))
    assert chosen.count_KA.tolist() == [[0, 2], [0, 0], [1, 0]]
    assert chosen.summary() == {"non_dominant_share": 0.0}
    chosen.end_epoch()
    chosen.add(torch.tensor([0, 0]), torch.tensor([True, True]))
    assert chosen.count_KA.tolist() == [[2, 1], [0, 0], [0.5, 0]]
    assert chosen.summary()["non_dominant_share"] == pytest.approx(1 / 3.5)
    assert dominant_centres(chosen.count_KA).tolist() == [0, 0, 0]


def test_a_rank_without_classes_counts_nothing():
    chosen = ChosenCentres(0, 3, CPU)
    chosen.add(torch.tensor([2, 5]), torch.tensor([False, False]))
    chosen.end_epoch()
    assert chosen.summary() == {}
