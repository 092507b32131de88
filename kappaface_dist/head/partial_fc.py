"""PartialFC: the classifier, sharded over the ranks, with a margin for each class.

Shapes: B images on this rank, G images on all N ranks, D embedding size, C all classes, K classes
of this shard; of centres and their state its rows, sub_centres times as many.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from kappaface_dist.counter_random import mix64
from kappaface_dist.head.checks import batch_evidence, check_images, check_labels
from kappaface_dist.head.joint_loss import Embedded, announce_together, joint_loss
from kappaface_dist.head.margins import KappaFace, Margin
from kappaface_dist.head.margins.class_margins import ClassMargins
from kappaface_dist.head.micro_batches import MicroBatches, observe
from kappaface_dist.head.rounding import Rounding
from kappaface_dist.head.shard import initial_centres, shard_classes
from kappaface_dist.head.softmax.exchange import Pass
from kappaface_dist.head.softmax.first_pass import FirstPass, first_pass
from kappaface_dist.head.softmax.gathered import GlobalBatch
from kappaface_dist.head.softmax.negligible import Skipped
from kappaface_dist.head.softmax.rank_one import RankOne
from kappaface_dist.head.softmax.row_update import RowOptimizer, RowState, SGDRows, update_centres
from kappaface_dist.head.softmax.rows import Centres
from kappaface_dist.head.softmax.second_pass import whole_gradient
from kappaface_dist.head.softmax.settings import Softmax
from kappaface_dist.head.softmax.sub_centres import by_class
from kappaface_dist.head.softmax.tiles import check_kernels
from kappaface_dist.parallel import ranks as parallel


class PartialFC(torch.nn.Module):
    """The margin softmax over all classes, each rank holding the centres of its own (`README.md`).

    All ranks hand in equally many images; constructing, calling, `refresh` and `end_epoch` are
    collective. The loss is a global mean and DDP averages over ranks: gradients are times N.
    `softmax`, its settings, may be replaced between steps.

    Args:
        num_classes, embedding_size: C, over all ranks, and D.
        margin: the margin; KappaFace by default.
        images_per_class: images of every class in the dataset [C], for KappaFace; None: unknown.
        sample_rate: share of the shard's classes used as negatives in each step; 1 is exact.
        optimizer: how `step` updates the centres.
        dtype: of the operands of the products: float32 or bfloat16, or float64 for everything.
        centre_dtype: of the centres between steps; bfloat16: rounded stochastically; None: float32.
        logit_cache_bytes: how much of a step's logits the second pass may use again, kept in bf16.
        filter_threshold: negatives with a cosine above it are left out of the loss; None: none.
        split_centres: hold fp32 centres as halves (`softmax/rows.py`); None: bfloat16 on a GPU.
        chunk_bytes: of one chunk of logits; None: what suits the device's cache.
        skip_mass: share of the negatives' mass that `step` may leave out (`softmax/negligible.py`).
        fused: the Triton kernels, as `softmax/settings.py` has it; True: "auto", False: "off".
        robust: where the trust in labels counts (`margins/image_trust.py`): "loss", ..., "off".
        sub_centres: rows a class, of which an image meets the nearest (`softmax/sub_centres.py`).
        seed, device: of the initial centres, which depend on (seed, class) alone; of the shard.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int = 512,
        margin: Margin | None = None,
        *,
        images_per_class: np.ndarray | None = None,
        sample_rate: float = 1.0,
        optimizer: RowOptimizer | None = None,
        dtype: torch.dtype = torch.float32,
        centre_dtype: torch.dtype | None = None,
        logit_cache_bytes: int = 0,
        filter_threshold: float | None = None,
        split_centres: bool | None = None,
        chunk_bytes: int | None = None,
        skip_mass: float = 0.0,
        fused: str | bool = "auto",
        robust: str = "off",
        sub_centres: int = 1,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        super().__init__()
        check_images(images_per_class, num_classes)
        self.margin = margin if margin is not None else KappaFace()
        self.softmax = Softmax(
            scale=self.margin.scale,
            largest_cosine=self.margin.largest_cosine,
            sample_rate=sample_rate,
            dtype=dtype,
            centre_dtype=centre_dtype,
            logit_cache_bytes=logit_cache_bytes,
            filter_threshold=filter_threshold,
            split_centres=split_centres,
            chunk_bytes=chunk_bytes,
            skip_mass=skip_mass,
            fused=fused if isinstance(fused, str) else "auto" if fused else "off",
            sub_centres=sub_centres,
        )
        device = torch.device(device)
        self.num_classes, self.seed, self.num_steps = num_classes, seed, 0
        self.optimizer = optimizer if optimizer is not None else SGDRows()
        check_kernels(self.softmax, device, embedding_size, self.optimizer.fused_numbers())
        self.classes = shard_classes(num_classes, parallel.rank(), parallel.world_size())
        self.rows = range(self.classes.start * sub_centres, self.classes.stop * sub_centres)
        self.state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        kept_dtype = centre_dtype or self.state_dtype
        weight_KD = initial_centres(self.rows, embedding_size, seed, kept_dtype, device)
        self.row_state: RowState = self.optimizer.init_state(weight_KD)
        self._centres = Centres(weight_KD, self.softmax.splits_centres(device), sub_centres)
        given = self.margin, self.classes, embedding_size, images_per_class
        self.class_margins = ClassMargins(*given, self.state_dtype, device, robust, sub_centres)
        self.rank_one, self.skipped = RankOne(), Skipped()
        self.micro_batches = MicroBatches(self._centres, self.classes, seed)
        self._last: GlobalBatch | None = None  # the batch just seen
        self.refuses_labels = device.type == "cpu"  # looking at a GPU's would stall it

    @property
    def weight_KD(self) -> torch.Tensor:
        """The raw centres of this shard as they are kept; put in order first if they are split."""
        return self._centres.plain()

    def forward(
        self,
        embedding_BD: torch.Tensor,
        label_B: torch.Tensor,
        epoch_B: torch.Tensor | None = None,
        slot_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss of the global batch, a scalar that is the same on every rank.

        Args:
            epoch_B: for the class statistics: how many epochs (of `end_epoch`) later than now each
                image belongs, up to 127, below 0 where it does not count; None: all to this one.
            slot_B: for `source: memory`: the number of each image in its class, from 0 on.

        Raises:
            ValueError: slot_B is missing; a label is out of range (on a GPU the loss is NaN
                instead, since looking would stall it, and `batch_evidence` has the label).
        """
        return joint_loss([self], Embedded(embedding_BD, label_B, epoch_B, slot_B))[0]

    def begin(self, batch: GlobalBatch, *, learning: bool) -> Pass[FirstPass]:
        """The first pass over a gathered batch, whose exchanges are `joint_loss`'s to make."""
        if learning and not self.micro_batches.num_seen:
            self.class_margins.start_step()
        self._last, label_G = batch, batch.label_G
        if self.refuses_labels:
            check_labels(label_G, self.num_classes)
        rows, column_G, announced_G = self.micro_batches.rows(
            label_G, self.softmax.sample_rate, learning=learning
        )
        room = self.softmax.logit_cache_bytes - self.held_cache_bytes()
        result = yield from first_pass(
            *(batch, rows, column_G, self.class_margins, self.softmax),
            seed=mix64(self.seed, self.num_steps),
            number_G=self.micro_batches.numbers(len(label_G), label_G.device),
            cache_bytes=room if learning else None,
            rank_one=self.rank_one,
        )
        # NaN rather than a wrong loss where a GPU's labels could not be looked at.
        valid_G = announced_G & (label_G >= 0) & (label_G < self.num_classes)
        self.micro_batches.num_seen += len(label_G) // parallel.world_size() * learning
        return replace(result, loss=torch.where(valid_G.all(), result.loss, torch.nan))

    def announce(self, label_X: torch.Tensor) -> None:
        """Draw one sample for all losses of a step, from their labels in order. Collective."""
        announce_together([self], label_X)

    @torch.no_grad()
    def step(
        self, lr: float, *, loss_scale: torch.Tensor | float = 1.0, skip: torch.Tensor | None = None
    ) -> None:
        """Second pass: the shard's centres learn from all losses differentiated since the last one.

        Args:
            loss_scale: what the loss was multiplied with before backward().
            skip: 0-dimensional bool; where true, nothing changes (an overflow in fp16).
        """
        pending = self.micro_batches.over_the_same_rows(self.softmax)
        batches = [batch.unscaled(loss_scale) for batch in pending]
        self.skipped.add([batch.tiles for batch in batches])
        self._centres.arrange()
        rounding = Rounding.of_step(self.seed, self.num_steps, self.rows.start)
        update_centres(batches, self.softmax, self.row_state, self.optimizer, lr, skip, rounding)
        observe(self.margin, self.class_margins.state, batches, skip)
        self.discard()
        self.num_steps += 1
        self.class_margins.end_step(self.num_steps)

    @torch.no_grad()
    def weight_gradient(self) -> torch.Tensor:
        """The gradient, as `weight_KD`, that `step` would use; for tests, since it takes memory."""
        self._centres.arrange()
        return whole_gradient(self.micro_batches.over_the_same_rows(self.softmax), self.softmax)

    def discard(self) -> None:
        """Forget the losses differentiated since the last step, without an update."""
        self.micro_batches.forget()
        self._last = None

    def held_cache_bytes(self) -> int:
        """Memory that the logit caches of the losses differentiated since the last step take."""
        return self.micro_batches.held_cache_bytes()

    def take_chunks_of(self, num_rows: int) -> None:
        """From now on take this many centres at a time, whatever chunk_bytes says."""
        self.softmax = replace(self.softmax, rows_per_chunk=num_rows)

    def margins(self) -> torch.Tensor:
        """This shard's live per-class margins [K], fp32: radians, or as the margin states."""
        return self.class_margins.margin_K

    def summary(self) -> dict[str, float]:
        """Margins, concentrations, and what was skipped since the last time. Collective."""
        skipped = self.skipped.take(self._centres.device) if self.softmax.skip_mass else {}
        return self.class_margins.summary(self.num_classes) | skipped

    def refresh(self) -> None:
        """End a window of the class statistics now: new concentrations, new margins."""
        self.class_margins.refresh()

    def end_epoch(self) -> None:
        """To be called after the step in which an epoch ends, once for each."""
        self.class_margins.end_epoch()

    def sharded_state(self) -> dict[str, torch.Tensor]:
        """All tensors with a row per class of this shard, by name; the live tensors, not copies."""
        state = {"weight": self.weight_KD}
        state |= {f"optimizer.{name}": tensor for name, tensor in self.row_state.items()}
        return by_class(state, self.softmax.sub_centres) | self.class_margins.sharded_state()

    def replicated_state(self) -> dict[str, torch.Tensor]:
        """Small tensors of the margin that are equal on all ranks; the live tensors, not copies."""
        return {f"margin.{name}": tensor for name, tensor in self.class_margins.state.items()}

    def counters(self) -> dict[str, Any]:
        """The numbers, equal on all ranks, that belong to the state beside its tensors."""
        numbers = {"num_draws": self.micro_batches.num_draws, "num_steps": self.num_steps}
        return numbers | self.class_margins.counters()

    def load_counters(self, counters: dict[str, Any]) -> None:
        self.micro_batches.num_draws, self.num_steps = counters["num_draws"], counters["num_steps"]
        self.class_margins.load_counters(counters)

    @torch.no_grad()
    def batch_evidence(self) -> torch.Tensor:
        """The numbers of a `checks.BatchEvidence` on the batch just seen, before `step`."""
        assert self._last is not None, "head.batch_evidence() without a batch since the last step"
        return batch_evidence(self._last.embedding_GD, self._last.label_G, self.num_classes)
