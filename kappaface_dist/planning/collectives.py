"""The collectives of one step, as train_step will issue them.

Shapes: B images of a micro-batch on this rank, G on all N ranks, D embedding size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kappaface_dist.config.datasets import datasets
from kappaface_dist.config.keys import Config
from kappaface_dist.head import KappaFace, Margin, build_margin
from kappaface_dist.head.margins import Images, target_logit
from kappaface_dist.head.softmax.settings import Softmax
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.planning.count_collectives import CountCollectives
from kappaface_dist.planning.head_buffers import without_kernels
from kappaface_dist.planning.made_up_job import made_up_head


@dataclass(frozen=True)
class PlannedCall:
    """One collective of a step.

    Attributes:
        item: what for.
        name: which.
        num_bytes: of the tensor that a rank hands in.
    """

    item: str
    name: str
    num_bytes: int


def plan_collectives(
    config: Config,
    num_ranks: int,
    trained_sizes: list[int],
    normalised: tuple[Sequence[int], Sequence[int]] = ((), ()),
) -> list[PlannedCall]:
    """All collectives of a rank in a step; one rank has none. Call it inside `pretend_ranks`.

    In order, but for SyncBatchNorm's, which are first here and between the others in a step.

    Besides these the trainer sums four bytes per step on the CPU, to agree on when to stop; and a
    window of the class statistics ends with some scalars, unplanned where it is longer than a step.

    Args:
        trained_sizes: numbers in each trained parameter of the backbone, in its order.
        normalised: channels of each SyncBatchNorm that a micro-batch meets in its forward pass, and
            of those that are computed once more in the backward pass.
    """
    if num_ranks == 1:
        return []
    number = 2 if config.backbone.gradient_dtype == "bf16" else 4
    buckets = bucket_sizes(trained_sizes, config.backbone.bucket_megabytes)
    gradients = [
        PlannedCall("gradient_all_reduce", "all_reduce", bucket * number) for bucket in buckets
    ]
    cached, accumulate = config.optimizer.cache_embeddings, config.optimizer.accumulate
    announced = []
    rates = [own.head.largest_sample_rate for own in datasets(config).values()]
    if accumulate > 1 and not cached and min(rates) < 1.0:
        labels = config.data.batch_size * accumulate * 8
        announced.append(PlannedCall("label_all_gather", "all_gather", labels))
    passes = head_calls(config, num_ranks) * (1 if cached else accumulate)
    synced = synced_calls(config, *normalised)
    of_step, of_encoder = (window_calls(config, encoded=encoded) for encoded in (False, True))
    return synced + announced + passes + gradients + of_step + encoder_calls(config) + of_encoder


def synced_calls(
    config: Config, forward: Sequence[int], recomputed: Sequence[int]
) -> list[PlannedCall]:
    """SyncBatchNorm's: of each layer mean, deviation and count, later the sums of two gradients."""
    again = forward if config.optimizer.cache_embeddings else ()
    calls = [
        PlannedCall("batchnorm_all_gather", "all_gather", 4 * (2 * channels + 1))
        for channels in (*forward, *again, *recomputed)
    ]
    calls += [
        PlannedCall("batchnorm_all_reduce", "all_reduce", 4 * 2 * channels) for channels in forward
    ]
    return calls * config.optimizer.accumulate


def head_calls(config: Config, num_ranks: int) -> list[PlannedCall]:
    """The collectives of one pass of the head, or of the heads of several datasets together."""
    if num_ranks == 1:
        return []
    cached = config.optimizer.cache_embeddings
    images = config.data.batch_size * (config.optimizer.accumulate if cached else 1)
    size, operand = config.backbone.embedding_size, 2 if config.head.dtype == "bf16" else 4
    margins = _margins(config)
    # A label of eight bytes travels behind its embedding, and some for the class statistics.
    behind = 8 + max(bytes_of_marks(margin) for margin in margins)
    behind += 4 * any(margin.uses_norm for margin in margins)
    num_bytes = images * (size * operand + behind)
    calls = [PlannedCall("embedding_all_gather", "all_gather", num_bytes)]
    shared = {
        "cosine_all_reduce": [margin.needs_all_cosines for margin in margins],
        "peak_all_reduce": [
            Softmax(scale=margin.scale, largest_cosine=margin.largest_cosine).needs_peaks
            for margin in margins
        ],
    }
    passes = images // config.data.batch_size * num_ranks
    for item, needed in shared.items():  # of the heads that need it, a number an image
        owns = zip(datasets(config).values(), needed, strict=True)
        if num_bytes := sum(4 * own.data.batch_size * passes for own, needs in owns if needs):
            calls.append(PlannedCall(item, "all_reduce", num_bytes))
    # Of each image its sum and its target's logit; to judge its label, its cosine too.
    summed = 2 if config.head.robust == "off" else 3
    calls.append(PlannedCall("loss_all_reduce", "all_reduce", images * num_ranks * summed * 4))
    num_bytes = images * num_ranks * (size + any(map(_learns_norm, margins))) * 4
    return [*calls, PlannedCall("embedding_reduce_scatter", "reduce_scatter", num_bytes)]


def _learns_norm(margin: Margin) -> bool:
    """Whether a gradient passes through the lengths of the embeddings."""
    if not margin.uses_norm:
        return False
    one_G = torch.ones(1)
    state = {name: torch.tensor(value) for name, value in margin.init_state().items()}
    target = target_logit(margin, Images(one_G, one_G, one_G), state)
    return target.norm_slope_G is not None or margin.penalty(one_G) is not None


def bytes_of_marks(margin: Margin) -> int:
    """What the class statistics must know of an image: its epoch, in a memory its number too."""
    if not isinstance(margin, KappaFace) or margin.source == "encoder":
        return 0
    return 5 if margin.source == "memory" else 1


def encoder_calls(config: Config) -> list[PlannedCall]:
    """Of a momentum encoder, whose embeddings all ranks see once a step."""
    margins = [margin for margin in _margins(config) if isinstance(margin, KappaFace)]
    if all(margin.source != "encoder" for margin in margins):
        return []
    images = config.data.batch_size * config.optimizer.accumulate
    operand = 2 if config.head.dtype == "bf16" else 4
    num_bytes = images * (config.backbone.embedding_size * operand + 8 + 1)
    return [PlannedCall("encoder_all_gather", "all_gather", num_bytes)]


def window_calls(config: Config, *, encoded: bool) -> list[PlannedCall]:
    """Of the ends of windows that are a step long, counted on heads of few classes.

    Args:
        encoded: of the statistics of a momentum encoder's embeddings, or of the others.
    """
    calls = []
    for own, margin in zip(datasets(config).values(), _margins(config), strict=True):
        if not isinstance(margin, KappaFace) or margin.refresh_steps != 1:
            continue
        if encoded == (margin.source == "encoder"):
            head = made_up_head(without_kernels(own), parallel.world_size(), torch.device("cpu"))
            with CountCollectives() as count:
                head.refresh()
            calls += [PlannedCall("statistics", call.name, call.num_bytes) for call in count.calls]
    return calls


def _margins(config: Config) -> list[Margin]:
    return [build_margin(**own.margin) for own in datasets(config).values()]


def bucket_sizes(trained_sizes: list[int], bucket_megabytes: float) -> list[int]:
    """Numbers in each of DDP's buckets: filled from the last parameter on until they are full."""
    buckets, filled = [], 0
    for size in reversed(trained_sizes):
        filled += size
        if filled * 4 >= bucket_megabytes * 2**20:
            buckets.append(filled)
            filled = 0
    return buckets + [filled] * (filled > 0)
