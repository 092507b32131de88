"""What the head is told of the images of a step: labels, to which epoch each belongs, its number.

Of an image with L labels (`data.labels: mean`) the head sees L, a label each, one after another:
the mean over all of them is the mean over the images of their labels' mean loss.
Shapes: B images of micro-batches on this rank, X what the head sees of them.
"""

from collections.abc import Iterable, Sequence

import torch

from kappaface_dist.data.loading.loader import Batch
from kappaface_dist.head.softmax.gathered import Counts, join_images, split_images


def labels(batches: Sequence[Batch]) -> torch.Tensor:
    """Of micro-batches, as the head takes them: [X]."""
    return torch.cat([batch.label_B.flatten() for batch in batches])


def for_each_label(images_BX: torch.Tensor, batches: Sequence[Batch]) -> torch.Tensor:
    """What belongs to the images of micro-batches, once for each of their labels."""
    number = batches[0].label_B[0].numel()
    return images_BX if number == 1 else images_BX.repeat_interleave(number, dim=0)


def epochs_later(
    batches: Sequence[Batch], epochs: Iterable[int], counts: Counts = None
) -> torch.Tensor | None:
    """How many epochs later than this one the images of micro-batches belong, one after another, as
    the head takes it; None where they do not say.

    Args:
        epochs: in which the step begins, of each dataset.
        counts: images of each in a micro-batch.
    """
    parts = [batch.epoch_B for batch in batches if batch.epoch_B is not None]
    if len(parts) < len(batches):
        return None
    epoch_B = torch.cat(parts)
    own = zip(split_images(epoch_B, counts), epochs, strict=True)
    later_B = join_images([part_B - epoch for part_B, epoch in own], counts)
    # Further ones, in a step over more than 127 epochs, have been seen often enough.
    later_B = torch.where((epoch_B >= 0) & (later_B <= 127), later_B, -1).to(torch.int8)
    return for_each_label(later_B, batches)


def slots(batches: Sequence[Batch]) -> torch.Tensor | None:
    """The numbers of micro-batches' images in their classes, as the head takes them, or None."""
    parts = [batch.slot_B.flatten() for batch in batches if batch.slot_B is not None]
    return torch.cat(parts) if len(parts) == len(batches) else None
