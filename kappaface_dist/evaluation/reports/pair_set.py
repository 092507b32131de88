"""Everything that a report says about one verification set.

Shapes: P pairs.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kappaface_dist.evaluation.one_to_many.hardest import hardest_pairs
from kappaface_dist.evaluation.one_to_one.bootstrap import Intervals, bootstrap, pair_identities
from kappaface_dist.evaluation.one_to_one.groups import GroupReport, group_errors
from kappaface_dist.evaluation.one_to_one.pairs import PairResult, evaluate_pairs, pixel_baseline
from kappaface_dist.evaluation.one_to_one.quality import RejectCurve, reject_curve
from kappaface_dist.evaluation.sets.group_file import read_groups
from kappaface_dist.evaluation.sets.pair_file import PairFile, read_pairs
from kappaface_dist.parallel import ranks as parallel

# Of the threshold that groups and qualities are judged at; the next larger where a set has too few
# pairs for it.
SHARED_FAR = "1e-3"
# What read_groups() returns.
Groups = tuple[list[str], np.ndarray, int]


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
        groups: errors by group, where groups were given.
        rejects: the error of what is left when images of low quality are rejected.
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
    groups: GroupReport | None = None
    rejects: RejectCurve | None = None

    def summary(self) -> dict[str, Any]:
        """The numbers, ready for JSON."""
        return {
            **self.result.summary(),
            "intervals": None if self.intervals is None else self.intervals.summary(),
            "identities": "named" if self.named else "guessed",
            "file": str(self.path),
            "sha256": self.sha256,
            "by_group": None if self.groups is None else self.groups.summary(),
            "by_quality": None if self.rejects is None else self.rejects.summary(),
        }


def report_set(
    model: nn.Module,
    path: Path,
    *,
    image_size: int,
    batch_size: int,
    device: torch.device,
    num_replicates: int,
    groups: Path | None = None,
    progress: Callable[[int], object] | None = None,
) -> SetReport:
    """Evaluate a model on one set; collective, with the same result on every rank.

    Args:
        num_replicates: of the bootstrap; 0 for no intervals.
        groups: a file of lines "KEY GROUP" (group_file.py).
        progress: see embed_images.

    Raises:
        ValueError: the set or one of its images is not readable.
    """
    pairs = parallel.agree(lambda: read_pairs(path))
    # Before hours of work: a mistake in it.
    grouped = parallel.agree(lambda: None if groups is None else _read_groups(groups, pairs))
    result = evaluate_pairs(
        model,
        pairs,
        image_size=image_size,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    return describe_set(
        path,
        pairs,
        result,
        pixels=pixel_baseline(pairs),
        num_replicates=num_replicates,
        groups=grouped,
    )


def describe_set(
    path: Path,
    pairs: PairFile,
    result: PairResult,
    *,
    pixels: float | None,
    num_replicates: int,
    groups: Groups | None = None,
) -> SetReport:
    """The report on a set that was evaluated already; not collective.

    Args:
        pixels: accuracy of raw pixels (pixel_baseline).
        num_replicates: of the bootstrap; 0 for no intervals.
        groups: of the images; errors by group need a threshold, so both kinds of pairs.
    """
    intervals = None
    identity_P2 = pair_identities(pairs.payloads, pairs.same_P)
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
    by_group, rejects = None, None
    point = result.operating_point(SHARED_FAR)
    if point is not None:
        far, threshold = point
        if groups is not None:
            names, group_P2, num_unused = groups
            by_group = group_errors(
                result.distance_P,
                pairs.same_P,
                identity_P2,
                group_P2,
                names,
                threshold=threshold,
                far=far,
                num_replicates=num_replicates,
            )
            by_group = replace(by_group, num_unused_keys=num_unused)
        if result.length_P2 is not None:
            rejects = reject_curve(
                result.distance_P, pairs.same_P, result.length_P2, threshold=threshold, far=far
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
        groups=by_group,
        rejects=rejects,
    )


def _read_groups(groups: Path, pairs: PairFile) -> Groups:
    people = None
    if pairs.names is not None:
        people = [name for i in range(pairs.num_pairs) for name in pairs.names.of_pair(i)]
    return read_groups(groups, people, pairs.num_pairs)


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
