"""Every tool speaks one language: options of the same meaning have one name, unit and help."""

import argparse
import importlib.util
from pathlib import Path

import pytest

from kappaface_dist import options

TOOLS = sorted((Path(__file__).resolve().parents[2] / "tools").glob("*.py"))
METAVARS = {
    "--json": "PATH|-",
    "--batch-size": "IMAGES",
    "--image-size": "PIXELS",
    "--embedding-size": "NUMBERS",
    "--threads": "THREADS",
    "--device": "DEVICE",
    "--identities": "IDENTITIES",
    "--unseen-identities": "IDENTITIES",
}
# Numbers of things that can be many, wherever an option of the name takes one.
COUNTS = {"--classes", "--images", "--batch-size", "--embedding-size", "--image-size", "--threads"}
COUNTS |= {"--identities", "--unseen-identities", "--plan-for", "--logit-cache-bytes"}
# Words of other tools for the same, which a user must not have to know.
OTHERS = {"--batch", "--embedding", "--people", "--unseen", "--persons", "--num-threads"}
OTHERS |= {"--workers", "--output", "--size", "--resolution", "--img-size", "--bs"}

WITHOUT_RESULTS = {"init"}  # it writes a configuration


class CapturedError(Exception):
    pass


@pytest.fixture(scope="module")
def parsers():
    """The parser of each tool, as it is when it begins to parse."""

    def capture(parser, *args, **kwargs):
        raise CapturedError(parser)

    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, capture)
        for path in TOOLS:
            spec = importlib.util.spec_from_file_location(f"tool_{path.stem}", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            with pytest.raises(CapturedError) as captured:
                module.main()
            (found[path.stem],) = captured.value.args
    return found


def shown_options(parser):
    """(name, action) of each option that the help shows."""
    for action in parser._actions:
        if action.help != argparse.SUPPRESS:
            yield from ((name, action) for name in action.option_strings)


def test_one_name_unit_and_help(parsers):
    assert len(parsers) == len(TOOLS) > 20
    helps = set()
    for tool, parser in parsers.items():
        named = dict(shown_options(parser))
        if tool not in WITHOUT_RESULTS:
            assert "--json" in named, tool
            helps.add(named["--json"].help)
        for name, action in named.items():
            assert action.metavar == METAVARS.get(name, action.metavar), (tool, name)
            assert "_" not in name, (tool, name)
            assert name not in OTHERS, (tool, name)
    assert helps == {"write the results as JSON, - for standard output"}


def test_all_that_embed_are_told_alike_how_to_compute(parsers):
    """On which device, with how many threads, how many images at once."""
    embedding = ("embed", "identify", "find_overlap", "label_report", "compare", "evaluate")
    helps = set()
    for tool in (*embedding, "evaluate_templates"):
        named = dict(shown_options(parsers[tool]))
        helps |= {(name, named[name].help) for name in ("--device", "--threads", "--batch-size")}
        asked = parsers[tool].get_default("device"), parsers[tool].get_default("threads")
        assert asked == (None, 0), tool
    assert len(helps) == 3


def test_numbers_as_people_write_them(parsers):
    for tool, parser in parsers.items():
        for name, action in shown_options(parser):
            if name in COUNTS:
                assert [action.type(text) for text in ("2e6", "2M", "2000k")] == [2_000_000] * 3, (
                    f"{tool} {name}"
                )


def test_the_result_comes_last(parsers):
    """What must be named is the last place, OUT; what has a default is --out."""
    for tool, parser in parsers.items():
        places = [action.dest for action in parser._actions if not action.option_strings]
        outs = [place for place in places if "out" in place]
        assert outs in ([], places[-1:]), tool


def test_older_spellings_go_on_working(parsers):
    for tool, words, name, value in (
        ("benchmark_head", ["--batch", "64", "--embedding", "32"], "batch", 64),
        ("benchmark_head", ["--batch-size", "64"], "batch", 64),
        ("make_templates", ["OUT", "--people", "7"], "people", 7),
        ("make_templates", ["OUT", "--identities", "7"], "people", 7),
        ("compare_margins", ["--unseen", "9"], "unseen", 9),
        ("rehearse", ["CONFIG", "--classes", "100e6"], "classes", [100_000_000]),
    ):
        assert getattr(parsers[tool].parse_args(words), name) == value, (tool, words)


@pytest.mark.parametrize(
    ("text", "number"),
    {
        "0": 0,
        "64": 64,
        "200_000": 200_000,
        "2e6": 2_000_000,
        "1.1M": 1_100_000,
        "360K": 360_000,
        "0.5k": 500,
        "1.5e3": 1500,
        "3g": 3_000_000_000,
        "12_500k": 12_500_000,
    }.items(),
)
def test_counts(text, number):
    assert options.count(text) == number
    assert type(options.count(text)) is int


@pytest.mark.parametrize("text", ["", "-1", "1.5", "two", "1e400", "nan", "2MM", "1e-3", "0.1k5"])
def test_what_is_no_count(text):
    with pytest.raises(argparse.ArgumentTypeError, match="no whole number such as"):
        options.count(text)


def test_what_is_no_size_and_no_device():
    with pytest.raises(argparse.ArgumentTypeError, match="1 or more"):
        options.positive("0")
    assert [options.device(name) for name in ("cpu", "cuda", "cuda:3")] == ["cpu", "cuda", "cuda:3"]
    for name in ("gpu", "cuda:", "mps0", "CPU"):
        with pytest.raises(argparse.ArgumentTypeError, match="no device: cpu, cuda"):
            options.device(name)
