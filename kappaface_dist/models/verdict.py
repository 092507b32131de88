"""What an export in coarser arithmetic costs and gains: accuracy, size, speed, beside float32's.

Shapes: B images, H W image size.
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kappaface_dist.evaluation.one_to_one.bootstrap import pair_identities
from kappaface_dist.evaluation.one_to_one.paired import Difference, paired_differences
from kappaface_dist.evaluation.one_to_one.pairs import PairResult, evaluate_pairs
from kappaface_dist.evaluation.reports.table_formats import as_text
from kappaface_dist.evaluation.sets.pair_file import PairFile
from kappaface_dist.models.exported import ExportedNetwork
from kappaface_dist.parallel.cores import num_cores

# Images at a time: one, as a door does it, and many, as a search engine does.
SPEED_BATCHES = (1, 32)
SPEED_ROUNDS = 7


@dataclass(frozen=True)
class Verdict:
    """A file beside the float32 export of the same weights.

    Attributes:
        differences: by set and number, the file's minus float32's.
        results: the file's own numbers by set.
        megabytes: of float32, of the file.
        images_per_second: by images at a time, of float32 and of the file, on this CPU.
        threads: cores that it was measured with.
    """

    differences: dict[str, dict[str, Difference]]
    results: dict[str, PairResult]
    megabytes: tuple[float, float]
    images_per_second: dict[int, tuple[float, float]]
    threads: int

    def losses(self, most: float) -> list[str]:
        """A sentence for each set on which the accuracy falls by more than `most`, a share."""
        found = []
        for name, numbers in self.differences.items():
            accuracy = numbers.get("accuracy")
            if accuracy is not None and -accuracy.difference > most + 1e-9:
                found.append(
                    f"{name}: the accuracy falls from {accuracy.first:.2%} to"
                    f" {accuracy.second:.2%}, by more than {most:.2%}"
                )
        return found

    def summary(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "megabytes": dict(zip(("float32", "file"), self.megabytes, strict=True)),
            "images_per_second": {
                str(batch): dict(zip(("float32", "file"), pair, strict=True))
                for batch, pair in self.images_per_second.items()
            },
            "threads": self.threads,
            "sets": {
                name: {
                    key: {
                        "float32": each.first,
                        "file": each.second,
                        "difference": each.difference,
                        "interval": each.interval,
                    }
                    for key, each in numbers.items()
                }
                for name, numbers in self.differences.items()
            },
        }

    def text(self) -> str:
        """For the terminal and the model card."""
        size, own = self.megabytes
        lines = [f"{own:.2f} MB beside {size:.2f} MB in float32"]
        for batch, (before, after) in self.images_per_second.items():
            lines.append(
                f"{after:.0f} images/s beside {before:.0f}, {batch} at a time, on"
                f" {self.threads} cores of this CPU"
            )
        rows = [["set", "number", "float32", "file", "difference, points"]]
        for name, numbers in self.differences.items():
            for key, each in numbers.items():
                bounds = each.interval
                interval = (
                    "" if bounds is None else f" [{100 * bounds[0]:+.2f}, {100 * bounds[1]:+.2f}]"
                )
                shares = f"{100 * each.first:.2f}", f"{100 * each.second:.2f}"
                rows.append([name, key, *shares, f"{100 * each.difference:+.2f}{interval}"])
        return "\n".join([*lines, as_text(rows)])


def judge(
    reference: ExportedNetwork,
    candidate: ExportedNetwork,
    paths: tuple[Path, Path],
    sets: Mapping[str, PairFile],
    *,
    image_size: int,
    batch_size: int,
    num_replicates: int,
) -> Verdict:
    """Run both on the same sets and compare.

    Args:
        reference: in float32, and the file that it is in, first of paths.
        sets: verification sets by name.
        num_replicates: of the bootstrap over people; 0 for no intervals.

    Raises:
        ValueError: an image of a set is not readable, or a set gives no accuracy.
    """
    differences, results = {}, {}
    for name, pairs in sets.items():
        before, after = (
            _evaluate(each, pairs, image_size, batch_size) for each in (reference, candidate)
        )
        if before.accuracy is None:
            raise ValueError(f"{name} cannot tell what is lost: {before.note}")
        identity_P2 = (
            pair_identities(pairs.payloads, pairs.same_P)
            if pairs.names is None
            else pairs.names.identity_P2
        )
        differences[name] = paired_differences(
            before, after, pairs.same_P, identity_P2, num_replicates=num_replicates
        )
        results[name] = after
    megabytes = [path.stat().st_size / 1e6 for path in paths]
    return Verdict(
        differences,
        results,
        (megabytes[0], megabytes[1]),
        {batch: _speeds((reference, candidate), batch, image_size) for batch in SPEED_BATCHES},
        num_cores(),
    )


def _evaluate(model: nn.Module, pairs: PairFile, image_size: int, batch_size: int) -> PairResult:
    device = torch.device("cpu")
    return evaluate_pairs(model, pairs, image_size=image_size, batch_size=batch_size, device=device)


def _speeds(
    models: tuple[ExportedNetwork, ExportedNetwork], batch: int, image_size: int
) -> tuple[float, float]:
    """Images per second, the median of rounds in which both take turns."""
    image_B3HW = np.zeros((batch, 3, image_size, image_size), dtype=np.float32)
    seconds: list[list[float]] = [[], []]
    for turn in range(SPEED_ROUNDS + 1):
        for model, taken in zip(models, seconds, strict=True):
            start = time.perf_counter()
            model.run(image_B3HW)
            if turn:  # the first allocates
                taken.append(time.perf_counter() - start)
    first, second = (batch / statistics.median(taken) for taken in seconds)
    return first, second
