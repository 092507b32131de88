"""The datasets of a run, each with a head of its own.

`data.train` names one dataset, or maps names to several. A run of several has, for each of them,
the configuration that a run of it alone would have: everything that is about one head takes that,
and one dataset without a name is the case of one. So are several that `data.merge` makes one.
"""

import re
from dataclasses import fields, replace
from typing import Any, NamedTuple
from zlib import crc32

from kappaface_dist.config.keys import MARGIN_KEYS_OF_ALL, Config, TrainSet
from kappaface_dist.config.rules import brief

# Of a checkpoint's tensors, behind "head.".
TAKEN_NAMES = ("weight", "margin", "optimizer", "statistics", "memory")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,59}")
Path = str | list[str]


class ClassMap(NamedTuple):
    """Which classes of two datasets are one person: the file that says so, and their names."""

    path: str
    first: str
    second: str


def datasets(config: Config) -> dict[str, Config]:
    """For each dataset by its name ("" where there is one without) the configuration of its own.

    Its data.train is a path, data.batch_size the images that it has in a micro-batch of a rank;
    margin, head.sample_rate, head.init and head.identity_map are its own, where it has them;
    run.seed is another one for each name, and logit_cache_bytes a share.

    Raises:
        ValueError: a name, a path or a share is wrong.
    """
    train, merge = config.data.train, config.data.merge
    if not isinstance(train, dict):
        if merge is not None:
            raise ValueError(
                f"data.merge is {brief(merge)}, but data.train names one dataset: leave data.merge"
                " out, or name several"
            )
        return {"": config}
    if merge is not None:
        _check_merged(config, train)
        return {"": config}
    if config.head.init is not None or config.head.identity_map is not None:
        raise ValueError(
            "head.init or head.identity_map is set, but data.train names several datasets, with a"
            f" head each: set data.train.{next(iter(train))}.init instead"
        )
    _check_names_and_paths(train)
    counts = _images_of_each(config.data.batch_size, train)
    return {name: _of_one(config, name, own, counts[name]) for name, own in train.items()}


def paths(own: Config) -> dict[str, Path]:
    """Where the files of one of `datasets` lie: of "" alone, or by the names of those that
    `data.merge` makes one.
    """
    train = own.data.train or []
    if not isinstance(train, dict):
        return {"": train}
    return {name: part.path or [] for name, part in train.items()}


def class_maps(own: Config) -> list[ClassMap]:
    """Of one of `datasets`, by which its parts are made one.

    Raises:
        ValueError: data.merge does not say of which two datasets a map is, or names others.
    """
    train, merge = own.data.train, own.data.merge
    if merge is None or not isinstance(train, dict):
        return []
    names = list(train)
    if isinstance(merge, str):
        if len(names) != 2:
            raise ValueError(
                f"data.merge is one map, and data.train names {len(names)} datasets: say of which"
                f" two each map is, as data.merge={{{names[0]}-{names[-1]}: {brief(merge)}}}"
            )
        return [ClassMap(merge, *names)]
    maps = []
    for pair, path in merge.items():
        first, _, second = pair.partition("-")
        if first not in names or second not in names or first == second:
            raise ValueError(
                f"data.merge has a map of {brief(pair)}: expected two of the datasets"
                f" {', '.join(names)}, as {names[0]}-{names[-1]}, whose classes are its first"
                " column and its second"
            )
        maps.append(ClassMap(path, first, second))
    return maps


def weights(config: Config) -> list[float]:
    """What an image of each dataset counts in the loss."""
    train = config.data.train
    if not isinstance(train, dict) or config.data.merge is not None:
        return [1.0]
    return [own.weight for own in train.values()]


def called(name: str) -> str:
    """How messages call the section of a dataset."""
    return f"data.train.{name}" if name else "data.train"


def _of_one(config: Config, name: str, own: TrainSet, num_images: int) -> Config:
    head, share = config.head, num_images / config.data.batch_size
    return replace(
        config,
        # Whoever takes a seed mixes it, so that any other number is as good.
        run=replace(config.run, seed=config.run.seed + crc32(name.encode())),
        data=replace(config.data, train=own.path, batch_size=num_images),
        head=replace(
            head,
            sample_rate=head.sample_rate if own.sample_rate is None else own.sample_rate,
            logit_cache_bytes=int(head.logit_cache_bytes * share),
            init=own.init,
            identity_map=own.identity_map,
        ),
        margin=_margin(config.margin, own.margin),
    )


def _margin(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Another margin keeps of the settings of all datasets those that every margin has."""
    if own.get("name", base["name"]) != base["name"]:
        base = {key: value for key, value in base.items() if key in MARGIN_KEYS_OF_ALL}
    return base | own


def _check_merged(config: Config, train: dict[str, TrainSet]) -> None:
    """What makes one head and one stream of several datasets leaves nothing to each of them."""
    _check_names_and_paths(train)
    for name, own in train.items():
        for field in fields(own):
            if field.name != "path" and getattr(own, field.name) != getattr(TrainSet(), field.name):
                raise ValueError(
                    f"data.train.{name}.{field.name} is set, but data.merge makes one set of all,"
                    " read in one order, with one head: leave it out, or leave out data.merge"
                )
    class_maps(config)


def _check_names_and_paths(train: dict[str, TrainSet]) -> None:
    for name, own in train.items():
        _check_name(name)
        if not own.path:
            raise ValueError(
                f"data.train.{name}.path is not set: give a .rec file or a folder of identities"
            )


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ValueError(
            f"data.train has a dataset named {brief(name)}: names are a letter, then letters,"
            " digits and _, 60 at most"
        )
    if name in TAKEN_NAMES:
        raise ValueError(
            f"data.train has a dataset named {name}, as a tensor of every head is named in"
            " checkpoints: choose another name"
        )


def _images_of_each(batch_size: int, train: dict[str, TrainSet]) -> dict[str, int]:
    """Whole images of each, the largest parts of an image rounded up until they are batch_size."""
    shares = {}
    for name, own in train.items():
        if own.share is None:
            raise ValueError(
                f"data.train.{name}.share is not set: say which part of a batch its images are"
            )
        shares[name] = own.share
    if abs(sum(shares.values()) - 1.0) > 1e-6:
        listed = ", ".join(f"{name} {share:g}" for name, share in shares.items())
        raise ValueError(
            f"the shares of data.train add up to {sum(shares.values()):g} ({listed}), expected 1:"
            " correct them"
        )
    exact = {name: share * batch_size for name, share in shares.items()}
    counts = {name: int(value) for name, value in exact.items()}
    by_rest = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_rest[: batch_size - sum(counts.values())]:
        counts[name] += 1
    for name, count in counts.items():
        if count == 0:
            raise ValueError(
                f"data.train.{name}.share is {shares[name]:g} of data.batch_size {batch_size},"
                " which is no image a step: raise one of them"
            )
    return counts
