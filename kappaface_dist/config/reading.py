"""Reads YAML as the types that the keys have.

The declared type decides how a text is taken: `run.name: 0123` is a name and stays as it is,
`log.wandb: off` is a word. Where no type is declared (the margin's settings) numbers are decimal,
and true, false and null are what they say; YAML 1.1's octal and sexagesimal numbers are none.
Nothing is filled in from elsewhere, and no tag makes an object.
"""

import dataclasses
import difflib
import re
from functools import cache
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from kappaface_dist.config.rules import brief

NULLS = ("", "~", "null", "Null", "NULL")
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")
WHOLE = re.compile(r"[-+]?\d(_?\d)*")
NUMBER = re.compile(r"[-+]?(\d(_?\d)*\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\.?(inf|nan)", re.IGNORECASE)
# Longer ones are no numbers; Python refuses to read those of more than 4300 digits.
MAX_DIGITS = 400
WANTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
STRING = "tag:yaml.org,2002:str"


def compose(text: str, source: str) -> Node | None:
    """The nodes of a YAML text, or None for an empty one.

    Raises:
        ValueError: it is not YAML, or more than data.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None:
            _refuse_tags(loader, node, set())
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError(f"{source} is not valid YAML: it is nested too deeply") from error
    return node


def nested(path: list[str], node: Node | None) -> MappingNode:
    """The mapping {a: {b: node}} for the path [a, b]; None stands for null."""
    inner = ScalarNode(STRING, "") if node is None else node
    for name in reversed(path):
        inner = MappingNode("tag:yaml.org,2002:map", [(ScalarNode(STRING, name), inner)])
    assert isinstance(inner, MappingNode)
    return inner


def read_section(node: MappingNode, section: type, prefix: str, where: str) -> dict[str, Any]:
    """The values that a mapping gives to keys of a section's dataclass, and no others.

    Args:
        prefix: of the keys' names, as `data.`.
        where: the file, or the command line, for messages.

    Raises:
        ValueError: a key is unknown or there twice, or a value has another type.
    """
    kinds = _kinds(section)
    known = list(kinds)
    values: dict[str, Any] = {}
    for name, child in pairs(node, where):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"{where}: unknown key {prefix}{_text(name)}: {hint}")
        kind = kinds[name]
        if not dataclasses.is_dataclass(kind):
            values[name] = _read(child, kind, f"{prefix}{name}", where)
        elif isinstance(child, MappingNode):
            values[name] = read_section(child, kind, f"{prefix}{name}.", where)  # type: ignore[arg-type]
        else:
            raise ValueError(f"{where}: {prefix}{name} is {_node(child)}: it is a section of keys")
    return values


def pairs(node: MappingNode, where: str) -> list[tuple[str, Node]]:
    """(name, value) of a mapping; ValueError where a name is there twice or is no scalar."""
    found: dict[str, Node] = {}
    for name, child in node.value:
        if not isinstance(name, ScalarNode):
            raise ValueError(f"{where}: {_node(name)} stands where the name of a key should be")
        if name.value in found:
            raise ValueError(f"{where}: {_text(name.value)} is set twice: keep one of them")
        found[name.value] = child
    return list(found.items())


@cache
def _kinds(section: type) -> dict[str, Any]:
    hints = get_type_hints(section)
    return {field.name: hints[field.name] for field in dataclasses.fields(section)}


def _read(node: Node, kind: Any, name: str, where: str) -> Any:
    options = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if NoneType in options and _is_null(node):
        return None
    for option in options:
        origin = get_origin(option)
        if dataclasses.is_dataclass(option) and isinstance(node, MappingNode):
            assert isinstance(option, type)
            return read_section(node, option, f"{name}.", where)
        if origin is list and isinstance(node, SequenceNode):
            (item,) = get_args(option)
            return [_read(child, item, name, where) for child in node.value]
        if origin is dict and isinstance(node, MappingNode):
            _, item = get_args(option)
            return {
                own: _read(child, item, f"{name}.{own}", where) for own, child in pairs(node, where)
            }
        if option is Any and isinstance(node, ScalarNode):
            return _untyped(node)
        if isinstance(node, ScalarNode) and not _is_null(node):
            found = _scalar(node, option)
            if found is not None:
                return found
    words = [_wanted(option) for option in options if option is not NoneType]
    raise ValueError(f"{where}: {name} is {_node(node)}: it must be {' or '.join(words)}")


def _scalar(node: ScalarNode, kind: type) -> Any:
    """The value, or None if the text is none of that type."""
    text = node.value.strip()
    if kind is str:
        return node.value
    if kind is bool:
        lower = text.lower()
        return True if lower in TRUE else False if lower in FALSE else None
    if len(text) > MAX_DIGITS:
        return None
    if kind is int:
        if WHOLE.fullmatch(text):
            return int(text)
        # 1e6 is a whole number too.
        number = _number(text)
        return (
            int(number) if number is not None and abs(number) < 2**53 and number % 1 == 0 else None
        )
    return _number(text) if kind is float else None


def _number(text: str) -> float | None:
    return (
        float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if NUMBER.fullmatch(text)
        else None
    )


def _untyped(node: ScalarNode) -> Any:
    if node.style is not None:  # in quotes
        return node.value
    if _is_null(node):
        return None
    if node.value in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return node.value.lower() == "true"
    if WHOLE.fullmatch(node.value):
        # 0123 is no number that anybody means.
        return node.value if re.match(r"[-+]?0\d", node.value) else _scalar(node, int)
    number = _scalar(node, float)
    return node.value if number is None else number


def _is_null(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.style is None and node.value in NULLS


def _wanted(kind: Any) -> str:
    if get_origin(kind) is list:
        return f"a list (of each {WANTED.get(get_args(kind)[0], 'a value')})"
    if get_origin(kind) is dict:
        return "a mapping of names"
    return "a section of keys" if dataclasses.is_dataclass(kind) else WANTED.get(kind, "one value")


def _node(node: Node) -> str:
    """A value as messages have it."""
    if isinstance(node, ScalarNode):
        return "null" if _is_null(node) else _text(node.value)
    return "a mapping" if isinstance(node, MappingNode) else f"a list of {len(node.value)}"


def _text(text: str) -> str:
    """Plain where nothing in it needs quotes."""
    return text if re.fullmatch(r"[\w.+-]{1,60}", text) else brief(text)


def _refuse_tags(loader: yaml.SafeLoader, node: Node, seen: set[int]) -> None:
    """Raise YAMLError for a tag that asks for an object, and for a node that holds itself."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if node.tag not in yaml.SafeLoader.yaml_constructors:
        loader.construct_object(node, deep=True)
    children = [] if isinstance(node, ScalarNode) else node.value
    for child in children:
        for each in child if isinstance(child, tuple) else (child,):
            _refuse_tags(loader, each, seen)
