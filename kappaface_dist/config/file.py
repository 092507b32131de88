"""Reads a Config from YAML files and key=value overrides, and writes it.

A file may say `extends: other.yaml` (relative to itself). Later layers win: defaults, the extended
file, the file, the overrides. A layer that names a margin starts the margin section anew, since
margins have keys of their own; one that sets run.steps or run.epochs unsets the other.
evaluate.sets adds to the sets of the layers below, and evaluate.sets={} leaves those out.
"""

import dataclasses
import difflib
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from kappaface_dist.config.checks import check_config
from kappaface_dist.config.keys import Config


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file and apply `key=value` overrides.

    Raises:
        ValueError: a file is missing or not YAML, a key is unknown, a value has the wrong type or
            contradicts another.
    """
    layers = _file_layers(Path(path), ())
    if overrides:
        layers.append(("the command line", _parse_overrides(overrides)))
    merged = OmegaConf.create({})
    for name, layer in layers:
        _check_keys(layer, Config, "", name)
        _drop_replaced(merged, layer)
        merged = OmegaConf.merge(merged, layer)  # type: ignore[assignment]
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), merged))
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: {getattr(error, 'full_key', '')}: {reason}") from error
    assert isinstance(config, Config)
    check_config(config)
    return config


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML; load_config reads it back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as nested dictionaries."""
    return dataclasses.asdict(config)


def _file_layers(path: Path, seen: tuple[Path, ...]) -> list[tuple[str, dict[str, Any]]]:
    """The file's content behind that of the files it extends, each with its name."""
    if path.resolve() in seen:
        raise ValueError(f"{path} extends itself by way of {' -> '.join(map(str, seen))}")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"config {path} cannot be read: {error}") from error
    except (YAMLError, OmegaConfBaseException) as error:
        raise ValueError(
            f"config {path} is not valid YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"config {path} holds a {type(content).__name__}: it must map sections")
    layer = {str(key): value for key, value in content.items()}
    parent = layer.pop("extends", None)
    layers = _file_layers(path.parent / parent, (*seen, path.resolve())) if parent else []
    return [*layers, (str(path), layer)]


def _parse_overrides(overrides: list[str]) -> dict[str, Any]:
    for text in overrides:
        key, equals, _ = text.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"{text!r} is not of the form key=value, as in optimizer.lr=0.05")
    try:
        layer = OmegaConf.to_container(OmegaConf.from_dotlist(overrides))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{' '.join(overrides)}: {' '.join(str(error).split())}") from error
    assert isinstance(layer, dict)
    return {str(key): value for key, value in layer.items()}


def _check_keys(layer: dict[str, Any], section: type, prefix: str, where: str) -> None:
    """Raise ValueError for a key that the section's dataclass does not have."""
    known = {f.name: f.type for f in dataclasses.fields(section)}
    for key, value in layer.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"{where}: unknown key {prefix}{key}: {hint}")
        kind = known[key]
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            if not isinstance(value, dict):
                raise ValueError(f"{where}: {prefix}{key} is {value!r}: it is a section of keys")
            _check_keys(value, kind, f"{prefix}{key}.", where)


def _drop_replaced(merged: DictConfig, layer: dict[str, Any]) -> None:
    """Take out of the layers below what this layer replaces as a whole."""
    if "name" in (layer.get("margin") or {}):
        merged.pop("margin", None)
    run = layer.get("run") or {}
    for key, other in (("steps", "epochs"), ("epochs", "steps")):
        if run.get(key) is not None and other not in run and "run" in merged:
            merged.run.pop(other, None)
    if (layer.get("evaluate") or {}).get("sets") == {} and "evaluate" in merged:
        merged.evaluate.pop("sets", None)
