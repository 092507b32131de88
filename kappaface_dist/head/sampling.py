"""Partial sampling: the classes of the batch, and a random part of the others.

Shapes: G images on all ranks, K classes of this shard, S rows drawn.
"""

import math

import torch

from kappaface_dist.counter_random import mix64
from kappaface_dist.head.softmax.rows import Centres, Rows


def sample_size(num_rows: int, sample_rate: float, num_images: int) -> int:
    """How many rows each step uses: always the same number, so nothing waits for the device."""
    return min(num_rows, math.ceil(sample_rate * num_rows) + min(num_images, num_rows))


def sample_rows(
    local_id_G: torch.Tensor,
    owned_G: torch.Tensor,
    num_rows: int,
    sample_rate: float,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw this step's rows: all owned classes of the batch, and random others.

    From a random start on, the rows are cut into ceil(r·K) strata, as equal as whole rows allow,
    and one row is drawn of each: every row has the same probability, and nothing is sorted.
    The places left (positives that a stratum drew anyway, classes of other ranks) go to the first
    free rows from that start on. All work is elementwise on K small integers.

    Args:
        local_id_G: row of each image's class; anything in 0..K-1 where it is not owned.
        owned_G: whether the class is on this rank.
        seed: of this step and rank.

    Returns:
        (index_S sorted row numbers, column_G the place of each image's class in index_S, or −1).
    """
    device = local_id_G.device
    size = sample_size(num_rows, sample_rate, len(local_id_G))
    num_strata = math.ceil(sample_rate * num_rows)
    generator = torch.Generator(device).manual_seed(seed)
    edge = torch.arange(num_strata + 1, device=device) * num_rows // num_strata
    uniform = torch.rand(num_strata, generator=generator, device=device)
    width = edge[1:] - edge[:-1]
    start = mix64(seed) % num_rows
    drawn = start + edge[:-1] + (uniform * width).long().minimum(width - 1)
    drawn %= num_rows

    chosen_K = torch.zeros(num_rows, dtype=torch.bool, device=device)
    chosen_K[drawn] = True
    chosen_K[torch.where(owned_G, local_id_G, drawn[0])] = True
    free_K = torch.roll(~chosen_K, -start)
    wanted = size - chosen_K.sum()
    chosen_K |= torch.roll(free_K & (free_K.cumsum(0, dtype=torch.int32) <= wanted), start)

    place_K = chosen_K.cumsum(0, dtype=torch.int32).long() - 1
    index = torch.empty(size + 1, dtype=torch.int64, device=device)
    # Rows that were not chosen all write to one place beyond the end.
    index.scatter_(0, torch.where(chosen_K, place_K, size), torch.arange(num_rows, device=device))
    return index[:size], torch.where(owned_G, place_K[local_id_G], -1)


def choose_rows(
    centres: Centres,
    local_id_G: torch.Tensor,
    owned_G: torch.Tensor,
    sample_rate: float,
    seed: int,
) -> tuple[Rows, torch.Tensor]:
    """The rows of a step, and where each image's class is among them (−1: not here).

    All rows, where the rate and the batch leave hardly any out; otherwise as in `sample_rows`.
    Classes are drawn: of several rows a class all come along, and its place is that of the first.
    """
    rows, each = centres.rows(), centres.sub_centres
    num_classes = len(rows) // each
    if sample_size(num_classes, sample_rate, len(owned_G)) == num_classes:
        return rows, torch.where(owned_G, local_id_G * each, -1)
    index_S, column_G = sample_rows(local_id_G, owned_G, num_classes, sample_rate, seed)
    if each > 1:
        index_S = (index_S[:, None] * each + torch.arange(each, device=index_S.device)).flatten()
        column_G = torch.where(owned_G, column_G * each, -1)
    return centres.rows(index_S), column_G
