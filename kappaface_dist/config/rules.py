"""What the value of a key can be: said once, beside the key, and checked from there.

A key of `keys.py` is declared with `key(default, ...)`; its type says how its text is read
(`reading.py`), its rule which values of that type make sense.
"""

import dataclasses
import math
import reprlib
import unicodedata
from collections.abc import Iterator
from typing import Any, get_type_hints

# Sizes beyond it fit no tensor, and Python's own numbers have no end.
LARGEST = 2**62
# Marks that turn the direction of the text around them: a line can then show what it does not say.
BIDIRECTIONAL = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
CONTROL = frozenset(("Cc", "Cs", "Zl", "Zp"))  # Unicode's categories

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120


@dataclasses.dataclass(frozen=True)
class Rule:
    """Bounds of a number, or of each in a list; words to choose from.

    Attributes:
        problem: the key is part of what a run solves: with another value it is another run.
    """

    choices: tuple[Any, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    problem: bool = False


def key(default: Any, **rule: Any) -> Any:
    """A key with this default (one of its own for each, where it can be changed) and a Rule."""
    metadata = {"rule": Rule(**rule)}
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def all_keys(section: type, prefix: str = "") -> Iterator[tuple[str, Rule]]:
    """(name with its section, rule) of every key below a section's dataclass."""
    kinds = get_type_hints(section)
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(kind := kinds[field.name]):
            assert isinstance(kind, type)
            yield from all_keys(kind, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field.metadata.get("rule", Rule())


def check_value(name: str, value: Any, rule: Rule) -> None:
    """Raise ValueError, in one sentence, unless the rule allows the value."""
    if value is None:
        return
    if dataclasses.is_dataclass(value):
        for own, own_rule in all_keys(type(value)):
            check_value(f"{name}.{own}", getattr(value, own), own_rule)
    elif rule.choices:
        # 1 == True, and is none of the choices.
        if not any(value == choice and type(value) is type(choice) for choice in rule.choices):
            words = ", ".join(str(choice).lower() for choice in rule.choices)
            raise ValueError(f"{name} is {brief(value)}: choose one of {words}")
    elif isinstance(value, list):
        for item in value:
            check_value(name, item, rule)
    elif isinstance(value, dict):
        for own, item in value.items():
            _check_text(f"the name in {name}", own)
            check_value(f"{name}.{own}", item, rule)
    elif isinstance(value, str):
        _check_text(name, value)
    elif not isinstance(value, bool):
        check_finite(name, value)
        if not _inside(value, rule):
            raise ValueError(f"{name} is {value}: {_bounds(rule)}")


def check_finite(name: str, value: float) -> None:
    """Raise ValueError for nan, infinity, and whole numbers that no tensor holds."""
    # Before anything turns it into a float: 10**400 cannot be one.
    if isinstance(value, int):
        if abs(value) > LARGEST:
            raise ValueError(f"{name} is {brief(value)}: it must be at most {LARGEST:.1e}")
    elif not math.isfinite(value):
        raise ValueError(f"{name} is {value}: it must be a finite number")


def brief(value: Any) -> str:
    """A value as messages have it: on one line, and not longer than one."""
    return _SHORT.repr(value)


def _check_text(name: str, text: str) -> None:
    if not text.strip():
        raise ValueError(f"{name} is {brief(text)}, which is empty: leave the key out instead")
    for place, character in enumerate(text):
        if unicodedata.category(character) in CONTROL or character in BIDIRECTIONAL:
            raise ValueError(
                f"{name} is {brief(text)}, with the control character U+{ord(character):04X} at"
                f" place {place}, which could forge lines of the log: take it out"
            )
    if "${" in text:
        raise ValueError(
            f"{name} is {brief(text)}: nothing is filled in, neither from the environment nor from"
            " other keys: write the value itself"
        )


def _inside(value: float, rule: Rule) -> bool:
    return (
        (rule.at_least is None or value >= rule.at_least)
        and (rule.above is None or value > rule.above)
        and (rule.at_most is None or value <= rule.at_most)
        and (rule.below is None or value < rule.below)
    )


def _bounds(rule: Rule) -> str:
    if (rule.at_least, rule.at_most) == (0, 1):
        return "it is a share, 0 to 1"
    words = ("at_least", "above", "at_most", "below")
    limits = {word.replace("_", " "): getattr(rule, word) for word in words}
    given = [f"{word} {limit:g}" for word, limit in limits.items() if limit is not None]
    return f"it must be {' and '.join(given)}"
