"""Every key with every kind of value: a sentence or a Config, and no number that is none."""

import dataclasses
import math

import pytest

from kappaface_dist.config.checks import RULES
from kappaface_dist.config.file import load_config, to_dict
from kappaface_dist.config.keys import Config

VALUES = (
    *("nan", ".nan", "-inf", ".inf", "inf", "1e400", "-1", "0", "1", "2", "-0.0", "1e-320", "0.5"),
    *("1" * 400, "1" * 5000, "9223372036854775808", "1e30", "0x10", "0123", "1_000", "1:30"),
    *("", "null", "~", "true", "off", "abc", "[]", "[1, 2]", "[nan, nan]", "[[1]]", "[null]", "{}"),
    *("{a: 1}", "{1: nan}", "[1, 2", "'", '"a\\nb"', "&a [*a]", "!!python/name:os.system"),
    *("a" * 5000, "\N{HIRAGANA LETTER A}", "\x00", "a\nb", "${oc.env:HOME}", "..", "/", "%s{}"),
)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {steps: 3}\ndata: {train: x.rec}\n")
    return tmp_path / "config.yaml"


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, int | float) else []


def attempt(path, override):
    try:
        return load_config(path, [override]), ""
    except ValueError as error:
        return None, str(error)


def test_no_value_of_any_key_is_a_traceback_or_a_number_that_is_none(path):
    tried = refused = 0
    names = [*RULES, "margin.scale", "margin.name", "evaluate.sets.a", *vars(Config())]
    for number, name in enumerate(names):
        for value in VALUES[number % 2 :: 2]:
            tried += 1
            config, message = attempt(path, f"{name}={value}")
            if config is None:
                refused += 1
                assert message, (name, value)
                assert "\n" not in message, (name, value)
                continue
            found = numbers(to_dict(config))
            assert all(map(math.isfinite, found)), name
            assert all(abs(n) < 2**63 for n in found if isinstance(n, int)), name
    assert tried > 1500
    assert 0.5 * tried < refused < tried


def test_defaults_obey_their_own_rules_and_every_number_has_one():
    def each(section, prefix=""):
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            if dataclasses.is_dataclass(value):
                yield from each(value, f"{prefix}{field.name}.")
            else:
                yield f"{prefix}{field.name}", field, value

    for name, field, _ in each(Config()):
        rule = RULES[name]
        if field.type in (int, float, int | None, float | None):
            assert (rule.at_least, rule.above) != (None, None), name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=nan", "optimizer.lr is nan: it must be a finite number"),
        ("margin.temperature=nan", "margin.temperature is nan: it must be a finite number"),
        ("optimizer.momentum=1", "optimizer.momentum is 1.0: it must be at least 0 and below 1"),
        ("data.batch_size=1.5", "data.batch_size is 1.5: it must be a whole number"),
        ("data.batch_size=true", "data.batch_size is true: it must be a whole number"),
        ("checkpoint.asynchronous=2", "checkpoint.asynchronous is 2: it must be true or false"),
        ("head.filter_threshold=1", "it must be above 0 and below 1"),
        ("backbone.checkpointing=[5]", "backbone.checkpointing is 5: it must be at least 1"),
        ("data.train={a: b}", "data.train.a is b: it must be a section of keys"),
        ("run.accept_changes=[optimizer.lr]", "run.accept_changes names 'optimizer.lr': choose"),
    ],
)
def test_what_is_said(path, override, message):
    with pytest.raises(ValueError, match=r".") as caught:
        load_config(path, [override])
    assert message in str(caught.value)


def test_whole_numbers_may_be_written_as_people_write_them(path):
    config = load_config(path, ["data.batch_size=1e3", "head.logit_cache_bytes=2_000_000_000"])
    assert (config.data.batch_size, config.head.logit_cache_bytes) == (1000, 2 * 10**9)
