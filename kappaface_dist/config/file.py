"""Reads a Config from YAML files and key=value overrides, and writes it.

A file may say `extends: other.yaml` (relative to itself). Later layers win: defaults, the extended
file, the file, the overrides; one that sets run.steps or run.epochs unsets the other. A layer that
names another margin drops the settings of the one before, except those that all margins have.
Where configs/NAME.yaml does not exist, that of the package is taken, and said.
A file's evaluate.sets are added to those of the files that it extends, {} leaves those out; so are
the datasets that data.train names. On the command line evaluate.sets={...} replaces them, and
+evaluate.sets={...} adds to them.
"""

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import yaml
from yaml import MappingNode, Node, ScalarNode

from kappaface_dist.config.checks import check_config
from kappaface_dist.config.keys import MARGIN_KEYS_OF_ALL, Config, TrainSet
from kappaface_dist.config.reading import STRING, compose, nested, pairs, read_section
from kappaface_dist.config.shipped import shipped_config

logger = logging.getLogger(__name__)

Layer = dict[str, Any]
COMMAND_LINE = "the command line"
MOST_BYTES = 10**6  # of a configuration file


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file and apply `key=value` overrides.

    Raises:
        ValueError: a file is missing or not YAML, a key is unknown, a value has the wrong type or
            contradicts another.
    """
    merged: Layer = {"margin": {"name": "kappaface"}}
    for layer in _file_layers(Path(path), ()):
        _add(merged, layer)
    if overrides:
        layer, replaces_sets = _command_line(overrides)
        if replaces_sets:
            merged.get("evaluate", {}).pop("sets", None)
        _add(merged, layer)
    config = _build(merged)
    check_config(config)
    return config


def parse_config(text: str, source: str) -> Config:
    """A Config from what to_yaml wrote, or from JSON; it extends nothing.

    Raises:
        ValueError: as load_config; source names the text.
    """
    node = compose(text, source)
    if not isinstance(node, MappingNode):
        raise ValueError(f"{source} holds no sections: it must map sections")
    merged: Layer = {"margin": {"name": "kappaface"}}
    _add(merged, read_section(node, Config, "", source))
    config = _build(merged)
    check_config(config)
    return config


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML; load_config reads it back."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as nested dictionaries."""
    return dataclasses.asdict(config)


def _file_layers(path: Path, seen: tuple[Path, ...]) -> list[Layer]:
    """The file's content behind that of the files it extends."""
    if not path.exists() and (shipped := shipped_config(path)):
        # Before there is a log; one process is enough to say it.
        if os.environ.get("RANK", "0") == "0":
            logger.warning("%s is not here: the package's own is taken, %s", path, shipped)
        path = shipped
    try:
        place = path.resolve()
        if place in seen:
            raise ValueError(f"{path} extends itself by way of {' -> '.join(map(str, seen))}")
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise ValueError(
                f"config {path} has {path.stat().st_size} bytes: it is no YAML of ours"
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        raise ValueError(f"config {path} cannot be read: {error}") from error
    node = compose(text, f"config {path}")
    if not isinstance(node, MappingNode):
        kind = "nothing" if node is None else "no sections"
        raise ValueError(f"config {path} holds {kind}: it must map sections")
    parent = dict(pairs(node, str(path))).get("extends")
    content = [(name, child) for name, child in node.value if child is not parent]
    layer = read_section(MappingNode(node.tag, content), Config, "", str(path))
    if parent is None:
        return [layer]
    if not isinstance(parent, ScalarNode) or not parent.value.isprintable() or not parent.value:
        raise ValueError(f"{path}: extends must be the path of one other file")
    return [*_file_layers(path.parent / parent.value, (*seen, place)), layer]


def _command_line(overrides: list[str]) -> tuple[Layer, bool]:
    """All overrides as one layer, and whether it replaces the sets of the layers below."""
    layer: Layer = {}
    replaces_sets = False
    for text in overrides:
        key, equals, value = text.partition("=")
        adds = key.startswith("+")
        key = key.removeprefix("+").strip()
        if not equals or not key:
            raise ValueError(f"{text!r} is not of the form key=value, as in optimizer.lr=0.05")
        if adds and key != "evaluate.sets":
            raise ValueError(f"{text!r} adds to {key}: only +evaluate.sets={{name: path}} can add")
        node = nested(key.split("."), _value(value, text))
        own = read_section(node, Config, "", COMMAND_LINE)
        if "sets" in own.get("evaluate", {}) and key in ("evaluate", "evaluate.sets") and not adds:
            replaces_sets = True
            layer.get("evaluate", {}).pop("sets", None)
        _update(layer, own)
    return layer, replaces_sets


def _value(text: str, override: str) -> Node | None:
    """YAML only where it is a list, a mapping or quoted: `runs/exp #2` is a name, and stays it."""
    if text.lstrip()[:1] in ("[", "{", '"', "'"):
        return compose(text, override)
    return ScalarNode(STRING, text)


def _add(merged: Layer, layer: Layer) -> None:
    """Put a layer on top of the merged ones, with what it replaces as a whole."""
    run = layer.get("run", {})
    for key, other in (("steps", "epochs"), ("epochs", "steps")):
        if run.get(key) is not None and other not in run:
            merged.get("run", {}).pop(other, None)
    for section, name in (("evaluate", "sets"), ("data", "train")):
        if layer.get(section, {}).get(name) == {}:
            merged.get(section, {}).pop(name, None)
    _drop_settings(merged["margin"], layer.get("margin", {}), "margin")
    named, again = (one.get("data", {}).get("train") for one in (merged, layer))
    if isinstance(named, dict) and isinstance(again, dict):
        for name in named.keys() & again.keys():
            before, after = (one[name].get("margin", {}) for one in (named, again))
            _drop_settings(before, after, f"data.train.{name}.margin")
    _update(merged, layer)


def _drop_settings(before: Layer, margin: Layer, section: str) -> None:
    """Of a margin that another one is about to replace only those that all margins have stay."""
    name = margin.get("name", before.get("name"))
    if name == before.get("name"):
        return
    dropped = [key for key in before if key not in MARGIN_KEYS_OF_ALL]
    for key in dropped:
        del before[key]
    # Before there is a log; one process is enough to say it.
    if dropped and os.environ.get("RANK", "0") == "0":
        logger.warning(
            "%s.name is %s instead of %s, whose settings are dropped: %s",
            *(section, name, before.get("name", "that of all"), ", ".join(dropped)),
        )


def _update(merged: Layer, layer: Layer) -> None:
    """Merge mappings into mappings; anything else takes the place of what was there."""
    for key, value in layer.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            _update(merged[key], value)
        else:
            merged[key] = value


def _build(values: Layer) -> Config:
    kinds: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Config)}
    train = values.get("data", {}).get("train")
    if isinstance(train, dict):
        named = {name: TrainSet(**own) for name, own in train.items()}
        values = values | {"data": values["data"] | {"train": named}}
    parts: dict[str, Any] = {
        name: kinds[name](**value) if dataclasses.is_dataclass(kinds[name]) else value
        for name, value in values.items()
    }
    return Config(**parts)
