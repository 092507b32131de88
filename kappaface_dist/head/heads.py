"""Several heads on one network: a dataset each, whose labels are its own.

Shapes: B images on this rank, of all datasets; X of this rank in the whole step.
"""

from collections.abc import Sequence

import torch

from kappaface_dist.head.joint_loss import Embedded, announce_together, joint_loss
from kappaface_dist.head.partial_fc import PartialFC
from kappaface_dist.head.softmax.gathered import Counts


class Heads(torch.nn.Module):
    """The heads of several datasets, called like one (`PartialFC`), at its number of collectives.

    In a micro-batch the images of one dataset stand after another's, in the order of `by_name`. Of
    the heads' products all are in one number type.

    Args:
        by_name: the heads, by the names of their datasets.
        counts: images of each in a micro-batch of a rank.
        weights: of each one's images in the loss, which is the mean of all (`joint_loss.py`).

    Attributes:
        losses: each head's own loss of the last step, unweighted; none before the first.
    """

    def __init__(
        self, by_name: dict[str, PartialFC], counts: Sequence[int], weights: Sequence[float]
    ):
        super().__init__()
        assert len(by_name) == len(counts) == len(weights)
        assert len({head.softmax.dtype for head in by_name.values()}) == 1
        self.by_name, self.counts, self.weights = by_name, tuple(counts), tuple(weights)
        self.losses: list[torch.Tensor] = []
        self._of_micro_batches: list[list[torch.Tensor]] = []

    def forward(
        self,
        embedding_BD: torch.Tensor,
        label_B: torch.Tensor,
        epoch_B: torch.Tensor | None = None,
        slot_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss of the global batch of all datasets; arguments as of `PartialFC.forward`."""
        images = Embedded(embedding_BD, label_B, epoch_B, slot_B)
        loss, own = joint_loss(list(self.by_name.values()), images, self.counts, self.weights)
        if loss.requires_grad:
            self._of_micro_batches.append(own)
        return loss

    def announce(self, label_X: torch.Tensor) -> None:
        """As `PartialFC.announce`, for all of them."""
        announce_together(list(self.by_name.values()), label_X, self.counts)

    def step(
        self, lr: float, *, loss_scale: torch.Tensor | float = 1.0, skip: torch.Tensor | None = None
    ) -> None:
        """As `PartialFC.step`, one after another."""
        for head in self.by_name.values():
            head.step(lr, loss_scale=loss_scale, skip=skip)
        own = zip(*self._of_micro_batches, strict=True)
        self.losses = [torch.stack(losses).mean() for losses in own]
        self._of_micro_batches.clear()

    def discard(self) -> None:
        """Forget the losses since the last step, without an update."""
        for head in self.by_name.values():
            head.discard()
        self._of_micro_batches.clear()

    def held_cache_bytes(self) -> int:
        """As `PartialFC.held_cache_bytes`, of all."""
        return sum(head.held_cache_bytes() for head in self.by_name.values())


def heads_by_name(head: PartialFC | Heads) -> dict[str, PartialFC]:
    """The heads by the names of their datasets; one alone has none."""
    return head.by_name if isinstance(head, Heads) else {"": head}


def images_of_each(head: PartialFC | Heads) -> Counts:
    """Images of each head in a micro-batch of a rank; None: one head's are as many as they are."""
    return head.counts if isinstance(head, Heads) else None
