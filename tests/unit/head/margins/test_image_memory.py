"""One embedding for every image: what it takes in, and what it leaves as it was."""

import numpy as np
import pytest
import torch

from kappaface_dist.head import KappaFace, PartialFC
from kappaface_dist.head.margins.image_memory import ImageMemory

COUNTS = np.array([2, 0, 3])


def unit(*rows):
    return torch.nn.functional.normalize(torch.tensor(rows), dim=1)


def test_nine_tenths_of_the_newest():
    memory = ImageMemory(COUNTS, 2, torch.device("cpu"), first_row=7)
    assert memory.rows == range(7, 12)
    assert memory.row_JD.nbytes == 5 * 2 * 2  # images x D x 2
    first_GD, second_GD = unit([3.0, 4.0], [1.0, 0.0]), unit([0.0, 1.0], [1.0, 0.0])
    label_G, slot_G = torch.tensor([2, 0]), torch.tensor([1, 1], dtype=torch.int32)
    every_G = torch.ones(2, dtype=torch.bool)
    now_GD, taken_G = memory.renew(first_GD, label_G, slot_G, every_G)
    torch.testing.assert_close(now_GD, first_GD)  # the first is the image's own
    assert taken_G.all()
    now_GD, _ = memory.renew(second_GD, label_G, slot_G, every_G)
    mixed = np.array([0.1 * 0.6, 0.1 * 0.8 + 0.9])
    mixed /= np.linalg.norm(mixed)
    # What was there had been rounded to 8 bits.
    np.testing.assert_allclose(now_GD[0], mixed, rtol=4e-3)
    np.testing.assert_allclose(memory.row_JD[3].float(), mixed, rtol=8e-3)
    assert (memory.row_JD[[0, 2, 4]] == 0).all()


@pytest.mark.parametrize(
    ("vector", "label", "slot", "used"),
    [
        ([float("nan"), 1.0], 0, 0, True),
        ([1.0, 0.0], 0, 2, True),  # the class has two
        ([1.0, 0.0], 1, 0, True),  # the class has none
        ([1.0, 0.0], 0, -1, True),
        ([1.0, 0.0], 0, 0, False),
    ],
)
def test_what_is_not_taken_changes_nothing(vector, label, slot, used):
    """Beside an image that is: the row that stands for "none" must not be another's."""
    memory = ImageMemory(COUNTS, 2, torch.device("cpu"))
    shown_GD = torch.tensor([vector, [0.0, 1.0]])
    label_G, slot_G = torch.tensor([label, 2]), torch.tensor([slot, 2], dtype=torch.int32)
    now_GD, taken_G = memory.renew(shown_GD, label_G, slot_G, torch.tensor([used, True]))
    assert taken_G.tolist() == [False, True]
    assert now_GD[0].tolist() == [0.0, 0.0]
    assert memory.row_JD.float().tolist() == [[0.0, 0.0]] * 4 + [[0.0, 1.0]]


def test_a_head_says_what_a_memory_needs():
    margin = KappaFace(source="memory")
    with pytest.raises(ValueError, match="source is memory, which needs the number of images"):
        PartialFC(3, 4, margin)
    head = PartialFC(3, 4, margin, images_per_class=COUNTS)
    embedding_BD, label_B = torch.randn(2, 4, requires_grad=True), torch.tensor([0, 2])
    with pytest.raises(ValueError, match="the head was given no slot_B: hand in the number"):
        head(embedding_BD, label_B)
    head(embedding_BD.detach(), label_B)  # nothing is learnt, so nothing is remembered
    assert (head.class_margins.memory.row_JD == 0).all()
