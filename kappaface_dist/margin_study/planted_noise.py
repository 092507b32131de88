"""Wrong labels planted in the images of a comparison, and what a report on them finds.

Shapes: I training images, C classes, D embedding size.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kappaface_dist.commands import write_json
from kappaface_dist.data.prepare.clean import WRONG, clean_labels
from kappaface_dist.evaluation.label_noise import PROBABLE, find_label_noise
from kappaface_dist.margin_study.dataset import StudyImages

FEWEST = 8  # images of each person who gets two classes, or shares one
KINDS = ("wrong_images", "two_people", "one_person")


@dataclass(frozen=True)
class Noise:
    """Attributes:
    flipped: share of the images that get the label of another person.
    mixed: share of the classes that are two people (half of them, rounded down) or that become two.
    """

    flipped: float = 0.0
    mixed: float = 0.0

    def __post_init__(self) -> None:
        for option, value in (("--flip", self.flipped), ("--mixed", self.mixed)):
            if not 0.0 <= value <= 0.5:
                raise ValueError(f"{option} is {value}, expected a share, 0 to 0.5")


@dataclass(frozen=True)
class Planted:
    """Attributes:
    label_I: with what is wrong in them, numbering the classes that there are.
    true_I: whom each image shows.
    truth: by KINDS, the images, the classes and the pairs of classes that are wrong.
    """

    label_I: np.ndarray
    true_I: np.ndarray
    truth: dict[str, set[Any]]


def plant(true_I: np.ndarray, noise: Noise, seed: int) -> Planted:
    """Join and split classes of FEWEST images or more, and flip labels, at random.

    Raises:
        ValueError: too few classes are large enough.
    """
    rng = np.random.default_rng([seed, 20])
    true_I = np.asarray(true_I)
    count_C = np.bincount(true_I)
    large = rng.permutation(np.flatnonzero(count_C >= FEWEST))
    num_mixed = round(noise.mixed * len(count_C))
    num_joined = num_mixed // 2
    if num_mixed + num_joined > len(large):
        raise ValueError(
            f"--mixed is {noise.mixed}, which takes {num_mixed + num_joined} classes of {FEWEST}"
            f" images or more, but the data has {len(large)}: lower it"
        )
    joined = large[: 2 * num_joined].reshape(-1, 2)
    split = large[2 * num_joined : num_mixed + num_joined]
    label_I = true_I.copy()
    for first, second in joined:
        label_I[true_I == second] = first
    owner = np.append(np.arange(len(count_C)), split)  # who a class is first of all
    for number, c in enumerate(split, len(count_C)):
        own = rng.permutation(np.flatnonzero(true_I == c))
        label_I[own[: len(own) // 2]] = number
    before_I, used = label_I.copy(), np.unique(label_I)
    flips = rng.permutation(len(label_I))[: round(noise.flipped * len(label_I))]
    for image in flips:
        label_I[image] = rng.choice(used[owner[used] != owner[before_I[image]]])
    names, label_I = np.unique(label_I, return_inverse=True)  # all of a class may have left it
    number_of = {int(name): number for number, name in enumerate(names)}
    pairs = [(int(c), number) for number, c in enumerate(split, len(count_C))]
    truth: dict[str, set[Any]] = {
        "wrong_images": set(flips.tolist()),
        "two_people": {number_of[int(c)] for c, _ in joined if int(c) in number_of},
        "one_person": {
            (number_of[c], number_of[n]) for c, n in pairs if c in number_of and n in number_of
        },
    }
    return Planted(label_I, true_I, truth)


def labelled(
    dataset: StudyImages, noise: Noise, seed: int, labels: str, report: Path
) -> StudyImages:
    """The dataset with the planted labels of a seed.

    Args:
        labels: "given", as they are; "cleaned", as convert_record.py --clean leaves them by a
            report of write_report; "truth", without all that is planted.
    """
    planted = plant(dataset.label_I, noise, seed)
    label_I = planted.label_I
    if labels == "truth":
        label_I = planted.true_I.copy()
        label_I[list(planted.truth["wrong_images"])] = WRONG
    elif labels == "cleaned":
        found = json.loads(report.read_text(encoding="utf-8"))
        label_I, _ = clean_labels(label_I, found["wrong_images"], found["one_person"])
    kept_I = np.flatnonzero(label_I != WRONG)
    label_I = np.unique(label_I[kept_I], return_inverse=True)[1].astype(np.int64)
    images = dataset.image_IHW3
    if len(kept_I) < len(images):
        images = images[kept_I]
    return replace(dataset, image_IHW3=images, label_I=label_I, count_C=np.bincount(label_I))


def write_report(path: Path, embedding_ID: np.ndarray, label_I: np.ndarray) -> None:
    """What tools/label_report.py would list, by KINDS."""
    noise = find_label_noise(embedding_ID.astype(np.float32), label_I)
    report = {
        "wrong_images": np.flatnonzero(noise.wrong_I >= PROBABLE).tolist(),
        "two_people": np.flatnonzero(noise.two_C >= PROBABLE).tolist(),
        "one_person": [[first, second] for first, second, _ in noise.one],
    }
    write_json(str(path), report)


def count_found(true_I: np.ndarray, noise: Noise, reports: Sequence[Path]) -> dict[str, Any]:
    """The noise, and by KINDS how much of it is planted, how much a report has found, and how much
    of that rightly, each by seed.

    Args:
        reports: of write_report, of the seeds from 0 on.
    """
    counts: dict[str, Any] = {key: {"planted": [], "found": [], "right": []} for key in KINDS}
    for seed, path in enumerate(reports):
        truth = plant(true_I, noise, seed).truth
        listed = json.loads(path.read_text(encoding="utf-8"))
        for kind in KINDS:
            found = {tuple(x) if isinstance(x, list) else x for x in listed[kind]}
            counts[kind]["planted"].append(len(truth[kind]))
            counts[kind]["found"].append(len(found))
            counts[kind]["right"].append(len(found & truth[kind]))
    return asdict(noise) | counts
