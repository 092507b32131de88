"""What a run solves: kept in its checkpoints, so that no run goes on with another problem unawares.

The problem is the dataset and every key that `config/keys.py` declares to be part of it. Where one
differs from the checkpoint's, the run is refused, unless `run.accept_changes` names it; what a user
may change goes on, and the log says what it was and what it is.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from kappaface_dist.config.checks import PROBLEM
from kappaface_dist.config.datasets import called, datasets
from kappaface_dist.config.file import to_dict
from kappaface_dist.config.keys import Config
from kappaface_dist.config.rules import brief
from kappaface_dist.data.loading.sampler import Shuffle
from kappaface_dist.data.normalisation import PIXEL_MEAN, PIXEL_SCALE
from kappaface_dist.data.sources.catalog import Catalog
from kappaface_dist.head import build_margin
from kappaface_dist.parallel import ranks as parallel

logger = logging.getLogger(__name__)

Problem = dict[str, Any]
DATA = "data.train"
# Of the dataset, all but where it lies: a copy in another place or format is the same.
SAME_DATA = ("images", "classes", "labels", "pictures", "pixels")
NUM_PICTURES = 64  # whose bytes are part of the fingerprint
NUM_PLACES = 4096  # of the order of the images
# They say how a run starts, not what it is.
NOT_COMPARED = ("run.accept_changes", "run.resume")


def describe_problem(config: Config, catalogs: Mapping[str, Catalog]) -> Problem:
    """What a run of config on these datasets solves, as JSON holds it; collective, read by rank 0.

    Args:
        catalogs: by the datasets' names, "" of one without.
    """
    first = parallel.rank() == 0
    described = parallel.agree(lambda: _describe(config, catalogs) if first else None)
    problem = parallel.gather_objects(described)[0]
    assert problem is not None
    return problem


def with_margin_defaults(config: Config) -> Config:
    """The configuration with every setting of its margins, those too that are the defaults.

    Raises:
        ValueError: there is no such margin or setting, or it is out of range.
    """
    train, owns = config.data.train, datasets(config)
    if isinstance(train, dict) and "" not in owns:
        full = {name: replace(train[name], margin=_full(own)) for name, own in owns.items()}
        config = replace(config, data=replace(config.data, train=full))
    return replace(config, margin=_full(config))


def _full(config: Config) -> dict[str, Any]:
    return {"name": config.margin["name"], **asdict(build_margin(**config.margin))}


def check_same_problem(
    folder: Path, numbers: Mapping[str, Any], problem: Problem, config: Config
) -> None:
    """Compare a checkpoint's problem and settings with those of this start.

    Args:
        folder: of the checkpoint.
        numbers: of the checkpoint.

    Raises:
        ValueError: the problem is another one, and run.accept_changes does not say so.
    """
    if "problem" not in numbers:
        logger.warning(
            "checkpoint %s is of an earlier version and does not say which data and which problem"
            " it is of: whether they are the same is not checked; the next checkpoint says it",
            folder,
        )
        return
    changes = _changed_problem(numbers["problem"], problem)
    accepted = [name for name in changes if _accepts(config.run.accept_changes, name)]
    refused = [name for name in changes if name not in accepted]
    if refused:
        raise ValueError(
            f"checkpoint {folder} is of another problem: "
            f"{'; '.join(changes[name] for name in refused)}: take the old value, give another"
            " run.folder, or, to go on with another problem on purpose, set"
            f" run.accept_changes=[{','.join(refused)}]"
        )
    for name in accepted:
        logger.warning("another problem than that of %s, on purpose: %s", folder, changes[name])
    now = {**flat(to_dict(config)), "ranks": parallel.world_size()}
    before = {**flat(numbers["config"]), "ranks": numbers["world_size"]}
    for name, text in changed(before, now).items():
        # Of a dataset the path is said below.
        if not (name in problem or name.startswith("margin.") or name.endswith(".path")):
            logger.info("changed since %s: %s", folder.name, text)
    for name, data in _datasets(problem).items():
        if name not in changes and numbers["problem"][name]["files"] != data["files"]:
            logger.info("%s is the same dataset in other files: %s", name, _data_text(data))


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """A sentence for every name with another value, or with one on one side only."""
    texts = {}
    for name in [*before, *(name for name in now if name not in before)]:
        old, new = (_json(side.get(name)) for side in (before, now))
        if old != new and name not in NOT_COMPARED:
            texts[name] = f"{name} was {_value_text(old)} and is {_value_text(new)}"
    return texts


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as section.key."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _describe(config: Config, catalogs: Mapping[str, Catalog]) -> Problem:
    settings = flat(to_dict(with_margin_defaults(config)))
    owns = datasets(config)
    # Of several datasets each has its own margin.
    margins = ("margin.",) if "" in owns else tuple(f"{called(n)}.margin." for n in owns)
    problem = {
        name: value
        for name, value in settings.items()
        if name in PROBLEM or name.startswith(margins)
    }
    for name, own in owns.items():
        problem[called(name)] = _describe_data(own, catalogs[name])
        if name:
            for key in ("share", "weight"):
                problem[f"{called(name)}.{key}"] = settings[f"{called(name)}.{key}"]
    return _json(problem)


def _datasets(problem: Problem) -> dict[str, Any]:
    """The parts of a problem that describe datasets, by their sections."""
    return {name: part for name, part in problem.items() if isinstance(part, dict)}


def _describe_data(config: Config, catalog: Catalog) -> dict[str, Any]:
    num_images = catalog.num_images
    shuffle = Shuffle(num_images, config.run.seed, config.data.block_shuffle)
    places = shuffle.indices(0, min(num_images, NUM_PLACES)).astype("<i8")
    return {
        "files": catalog.files,
        "images": num_images,
        "classes": catalog.num_classes,
        "labels": sha256(np.ascontiguousarray(catalog.labels, dtype="<i4").data).hexdigest(),
        "pictures": picture_digest(catalog),
        "pixels": f"(x - {PIXEL_MEAN:g}) / {PIXEL_SCALE:g}",
        "order": sha256(places.data).hexdigest(),
    }


def picture_digest(catalog: Catalog) -> str:
    """SHA-256 over pictures from the first to the last, evenly spread."""
    digest = sha256()
    for index in np.unique(np.linspace(0, catalog.num_images - 1, NUM_PICTURES, dtype=np.int64)):
        try:
            picture = catalog.read(int(index))
        except (ValueError, OSError):
            picture = b""  # a corrupt one is met, and counted, in training
        digest.update(f"{len(picture)} ".encode() + picture)
    return digest.hexdigest()


def _changed_problem(before: Problem, now: Problem) -> dict[str, str]:
    """A sentence for every part that differs; parts that only one version knows do not count."""
    old_data, new_data = _datasets(before), _datasets(now)
    if old_data.keys() != new_data.keys():
        names = [", ".join(data) for data in (old_data, new_data)]
        return {DATA: f"the datasets were {names[0]} and are {names[1]}"}
    common = [name for name in before if name in now and name not in old_data]
    texts = changed({name: before[name] for name in common}, {name: now[name] for name in common})
    settings_alike = not texts
    for name, old in old_data.items():
        new = new_data[name]
        if any(old[part] != new[part] for part in SAME_DATA):
            texts[name] = f"{name} was {_data_text(old)} and is {_data_text(new)}"
        elif settings_alike and old["order"] != new["order"]:
            texts[name] = f"this version reads {name} in another order"
    return texts


def _accepts(accepted: list[str], name: str) -> bool:
    return any(name == word or name.startswith(f"{word}.") for word in accepted)


def _data_text(data: Mapping[str, Any]) -> str:
    names = [name for name, _ in data["files"]]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"{data['images']} images of {data['classes']} classes in {', '.join(names[:3])}{more}"
        f" (labels {data['labels'][:8]}, pictures {data['pictures'][:8]}, as {data['pixels']})"
    )


def _value_text(value: Any) -> str:
    return value if isinstance(value, str) and value.isprintable() else brief(value)


def _json(value: Any) -> Any:
    """As it comes back from JSON: lists for tuples."""
    return json.loads(json.dumps(value))
