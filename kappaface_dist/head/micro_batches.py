"""What the losses of one step share, so that micro-batches are the batch of all their images.

One sample of classes, drawn from the labels of the whole step; a number for each image, which what
is drawn for it depends on; the margin's running values, which move once a step; one budget of
logits. The running values of a step are those that the steps before left: were its own images in
them, the first micro-batch would need the embeddings of the last.
Shapes: B images of a loss on this rank, X of the whole step, G images of a loss on all N ranks, Y
of the whole step; S rows in use.
"""

from dataclasses import replace

import torch

from kappaface_dist.counter_random import mix64
from kappaface_dist.head.checks import check_announced
from kappaface_dist.head.margins import Images, Margin, MarginState
from kappaface_dist.head.sampling import choose_rows
from kappaface_dist.head.softmax.rows import Centres, Rows
from kappaface_dist.head.softmax.second_pass import MicroBatch
from kappaface_dist.head.softmax.settings import Softmax
from kappaface_dist.parallel import ranks as parallel

# Numbers of images are a rank's own: this many of one rank before those of the next.
IMAGES_OF_A_RANK = 1 << 32


class MicroBatches:
    """The losses since the last step.

    Args:
        centres: of this shard.
        classes: this shard's.
        seed: as in PartialFC.

    Attributes:
        pending: what the second pass needs of those that were differentiated.
        num_seen: images of a rank in those that can be.
        num_draws: samples drawn in all steps.
    """

    def __init__(self, centres: Centres, classes: range, seed: int) -> None:
        self.pending: list[MicroBatch] = []
        self.num_draws = 0
        self._centres, self._classes = centres, classes
        self._seed = seed
        self.forget()

    def forget(self) -> None:
        """Begin a step anew."""
        self.pending.clear()
        self.num_seen = 0
        self._announced: tuple[Rows, torch.Tensor, torch.Tensor] | None = None

    def announce(self, label_Y: torch.Tensor, sample_rate: float) -> None:
        """Draw a sample for all losses of a step, whose labels these are, one rank's after another.

        Raises:
            ValueError: the step has begun already.
        """
        if self.num_seen:
            raise ValueError(
                f"head.announce() after a loss of {self.num_seen} images of the same step: announce"
                " all labels of a step before its first loss"
            )
        if sample_rate < 1.0:
            rows, column_Y = self._draw(label_Y, sample_rate)
            label_NX = label_Y.view(parallel.world_size(), -1)
            self._announced = rows, column_Y.view_as(label_NX), label_NX

    def rows(
        self, label_G: torch.Tensor, sample_rate: float, *, learning: bool
    ) -> tuple[Rows, torch.Tensor, torch.Tensor]:
        """(rows to use, each image's column among them, whether it is what was announced).

        Raises:
            ValueError: there are more images than were announced, or, on a CPU, where looking costs
                nothing, other labels.
        """
        if self._announced is None or not learning:
            return *self._draw(label_G, sample_rate), torch.ones_like(label_G, dtype=torch.bool)
        rows, column_NX, label_NX = self._announced
        num_ranks, num_announced = label_NX.shape
        last = self.num_seen + len(label_G) // num_ranks
        if last > num_announced:
            raise ValueError(
                f"{num_announced} labels a rank were announced for this step, but its losses have"
                f" {last}: announce all of them, or call head.step() first"
            )
        place = slice(self.num_seen, last)
        as_announced_G = label_NX[:, place].flatten() == label_G
        if label_G.device.type == "cpu":
            check_announced(as_announced_G)
        return rows, column_NX[:, place].flatten(), as_announced_G

    def _draw(self, label_Y: torch.Tensor, sample_rate: float) -> tuple[Rows, torch.Tensor]:
        owned_Y = (label_Y >= self._classes.start) & (label_Y < self._classes.stop)
        local_id_Y = torch.where(owned_Y, label_Y - self._classes.start, 0)
        seed = mix64(self._seed, self.num_draws, self._classes.start)
        self.num_draws += 1
        return choose_rows(self._centres, local_id_Y, owned_Y, sample_rate, seed)

    def numbers(self, num_images: int, device: torch.device) -> torch.Tensor:
        """The numbers in the step of the next loss's images [G], however the step is cut."""
        num_ranks = parallel.world_size()
        image_B = torch.arange(num_images // num_ranks, device=device) + self.num_seen
        rank_N1 = torch.arange(num_ranks, device=device)[:, None] * IMAGES_OF_A_RANK
        return (rank_N1 + image_B).flatten()

    def held_cache_bytes(self) -> int:
        """Memory that the logit caches of the pending losses take."""
        return sum(batch.cache.held_bytes for batch in self.pending)

    def over_the_same_rows(self, softmax: Softmax) -> list[MicroBatch]:
        """Those pending, for one second pass, which goes by the chunks of the largest.

        Where another's first pass had longer ones, none of its tiles is left out.

        Raises:
            ValueError: they drew different classes.
        """
        assert self.pending, "head.step() without a loss.backward() since the last one"
        first = self.pending[0].rows.index_S
        if any(batch.rows.index_S is not first for batch in self.pending):
            raise ValueError(
                f"the {len(self.pending)} losses of this step drew different classes: call"
                " head.announce() with the labels of all of them before the first"
            )
        lengths = [softmax.chunk_rows(batch.embedding_GD) for batch in self.pending]
        return [
            batch if length == min(lengths) else replace(batch, tiles=None)
            for batch, length in zip(self.pending, lengths, strict=True)
        ]


def observe(
    margin: Margin, state: MarginState, batches: list[MicroBatch], skip: torch.Tensor | None
) -> None:
    """Move the margin's running values by the images of a whole step.

    Args:
        skip: 0-dimensional bool; where true, nothing changes.
    """
    if not state:
        return
    images = [batch.images for batch in batches if batch.images is not None]
    norms = [one.norm_G for one in images if one.norm_G is not None]
    whole = Images(
        torch.cat([one.cosine_G for one in images]),
        torch.cat([one.margin_G for one in images]),
        torch.cat(norms) if norms else None,
    )
    before = {name: value.clone() for name, value in state.items()}
    margin.observe(whole, state)
    if skip is not None:
        for name, value in before.items():
            state[name].copy_(torch.where(skip, value, state[name]))
