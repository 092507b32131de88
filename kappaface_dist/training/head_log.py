"""What the log says of the heads: of one, or of each with its dataset's name behind it."""

from typing import NamedTuple

import numpy as np

from kappaface_dist.head import Heads, Margin, PartialFC
from kappaface_dist.head.heads import heads_by_name

Numbers = dict[str, float]


class ClassTable(NamedTuple):
    """The classes of a head at the end of a run, or some of them; κ is NaN where none was measured.

    Attributes:
        margin: the settings.
        largest: images of the largest class.
    """

    images_C: np.ndarray
    margin_C: np.ndarray
    kappa_C: np.ndarray
    margin: Margin
    largest: int


def start_counting(head: PartialFC | Heads) -> None:
    """Count the next step's images that are nearest to their own centre."""
    for one in heads_by_name(head).values():
        one.rank_one.start()


def head_numbers(head: PartialFC | Heads) -> Numbers:
    """Margins, concentrations and training accuracy; of several datasets each one's, its loss too,
    as NAME/DATASET, and the margins and the accuracy of all together. Collective.
    """
    found = {name: _of_one(one) for name, one in heads_by_name(head).items()}
    if not isinstance(head, Heads):
        return found[""]
    for name, loss in zip(found, head.losses, strict=False):  # none before the first step
        found[name]["loss"] = loss.item()
    sizes = [one.num_classes for one in head.by_name.values()]
    parts = list(found.values())
    together = {
        "margin_min": min(part["margin_min"] for part in parts),
        "margin_mean": _mean([part["margin_mean"] for part in parts], sizes),
        "margin_max": max(part["margin_max"] for part in parts),
    }
    if all("rank_1" in part for part in parts):
        together["rank_1"] = _mean([part["rank_1"] for part in parts], head.counts)
    own = {f"{key}/{name}": value for name, part in found.items() for key, value in part.items()}
    return together | own


def by_dataset(numbers: Numbers) -> dict[str, Numbers]:
    """The numbers of `head_numbers` of each dataset by its name, "" of one without."""
    names = [key.partition("/")[2] for key in numbers if key.startswith("margin_min/")]
    if not names:
        return {"": numbers}
    return {
        name: {
            key.partition("/")[0]: value
            for key, value in numbers.items()
            if key.partition("/")[2] == name
        }
        for name in names
    }


def datasets_text(numbers: Numbers) -> str:
    """Of each of several datasets, for a line of the log; empty of one."""
    text = ""
    for name, own in by_dataset(numbers).items():
        if name:
            loss = f" loss {own['loss']:.3f}" if "loss" in own else ""
            rank_1 = f" rank-1 {own['rank_1']:.1%}" if "rank_1" in own else ""
            if "non_dominant_share" in own:
                rank_1 += f" at other centres {own['non_dominant_share']:.1%}"
            text += f"  {name}{loss}{rank_1} margin {own['margin_mean']:.3f}"
    return text


def _of_one(head: PartialFC) -> Numbers:
    rank_1 = head.rank_one.take()
    return head.summary() | ({} if rank_1 is None else {"rank_1": rank_1})


def _mean(values: list[float], weights: list[int] | tuple[int, ...]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
