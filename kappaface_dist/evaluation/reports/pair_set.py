"""Everything that a report says about one verification set.

Shapes: P pairs.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kappaface_dist.evaluation.one_to_many.hardest import hardest_pairs
from kappaface_dist.evaluation.one_to_one.bootstrap import Intervals, bootstrap, pair_identities
from kappaface_dist.evaluation.one_to_one.pairs import PairResult, evaluate_pairs, pixel_baseline
from kappaface_dist.evaluation.sets.pair_file import PairFile, read_pairs
from kappaface_dist.parallel import ranks as parallel


@dataclass(frozen=True)
class HardPair:
    """Two encoded images that the model places wrongly, or nearly so."""

    number: int
    distance: float
    first: bytes
    second: bytes
    names: tuple[str, str] | None  # who is in them, where the set says


@dataclass(frozen=True)
class SetReport:
    """One set's numbers, and the few pictures that a report shows; the set itself is let go.

    Attributes:
        sha256: of the set's file.
        named: whether the set says who is who; otherwise the intervals' identities are a guess.
        pixels: accuracy of raw pixels.
        false_matches: different pairs, the closest first.
        false_non_matches: same pairs, the most distant first.
    """

    path: Path
    sha256: str
    result: PairResult
    same_P: np.ndarray
    intervals: Intervals | None
    named: bool
    pixels: float | None
    false_matches: list[HardPair]
    false_non_matches: list[HardPair]

    def summary(self) -> dict[str, Any]:
        """The numbers, ready for JSON."""
        return {
            **self.result.summary(),
            "intervals": None if self.intervals is None else self.intervals.summary(),
            "identities": "named" if self.named else "guessed",
            "file": str(self.path),
            "sha256": self.sha256,
        }


def report_set(
    model: nn.Module,
    path: Path,
    *,
    image_size: int,
    batch_size: int,
    device: torch.device,
    num_replicates: int,
    progress: Callable[[int], object] | None = None,
) -> SetReport:
    """Evaluate a model on one set; collective, with the same result on every rank.

    Args:
        num_replicates: of the bootstrap; 0 for no intervals.
        progress: see embed_images.

    Raises:
        ValueError: the set or one of its images is not readable.
    """
    pairs = parallel.agree(lambda: read_pairs(path))
    result = evaluate_pairs(
        model,
        pairs,
        image_size=image_size,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    return describe_set(
        path, pairs, result, pixels=pixel_baseline(pairs), num_replicates=num_replicates
    )


def describe_set(
    path: Path, pairs: PairFile, result: PairResult, *, pixels: float | None, num_replicates: int
) -> SetReport:
    """The report on a set that was evaluated already; not collective.

    Args:
        pixels: accuracy of raw pixels (pixel_baseline).
        num_replicates: of the bootstrap; 0 for no intervals.
    """
    intervals = None
    if num_replicates:
        identity_P2 = (
            pair_identities(pairs.payloads, pairs.same_P)
            if pairs.names is None
            else pairs.names.identity_P2
        )
        intervals = bootstrap(
            result.distance_P,
            pairs.same_P,
            identity_P2,
            result.tar_at_far,
            num_replicates=num_replicates,
        )
    false_matches, false_non_matches = hardest_pairs(-result.distance_P, pairs.same_P)
    return SetReport(
        path=path,
        sha256=_file_digest(path),
        result=result,
        same_P=pairs.same_P,
        intervals=intervals,
        named=pairs.names is not None,
        pixels=pixels,
        false_matches=_hard_pairs(pairs, result, false_matches),
        false_non_matches=_hard_pairs(pairs, result, false_non_matches),
    )


def _hard_pairs(pairs: PairFile, result: PairResult, numbers: list[int]) -> list[HardPair]:
    return [
        HardPair(
            number,
            float(result.distance_P[number]),
            pairs.payloads[2 * number],
            pairs.payloads[2 * number + 1],
            None if pairs.names is None else pairs.names.of_pair(number),
        )
        for number in numbers
    ]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
