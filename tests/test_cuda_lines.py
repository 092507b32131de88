"""No line that only a GPU runs, no setting that changes a step goes unlooked at: each is run by
tests/cuda_dry, or excused.
"""

from unittest import mock

import pytest

from tests.cuda_dry import settings
from tests.cuda_dry.lines import EXCUSED, RUN, is_excused, is_listed_as_run, marked_lines

KNOWN = """
def step(tensor, device):
    if device.type == "cuda":
        wait()
        for each in tensor:
            work(each)
    a = torch.empty(3, pin_memory=True)
    b = x.is_cuda and y
    torch.cuda.synchronize()
    c = tensor.cpu()
    if device.type == "cpu":
        alone()
"""


def test_every_line_is_run_or_excused():
    unknown = [
        f"{line.path}:{line.number} {line.text}" for line in marked_lines() if not is_known(line)
    ]
    assert not unknown, (
        "only a GPU runs these lines: run them in tests/cuda_dry and list them in its lines.py, or"
        " excuse them there with a reason:\n" + "\n".join(unknown)
    )


def is_known(line):
    return is_listed_as_run(line) or is_excused(line)


def test_no_line_is_listed_that_is_not_there():
    lines = marked_lines()
    there = {(line.path, line.text) for line in lines}
    assert {(path, text) for path, texts in RUN.items() for text in texts} <= there
    for entry in EXCUSED:
        assert any(is_excused_by(line, entry) for line in lines), entry


def is_excused_by(line, entry):
    with mock.patch("tests.cuda_dry.lines.EXCUSED", [entry]):
        return is_excused(line)


@pytest.mark.parametrize("folder", ["kappaface_dist", "launch", "tools"])
def test_a_new_line_is_found(tmp_path, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "new.py").write_text(KNOWN)
    found = marked_lines(tmp_path)
    assert [line.number for line in found] == [3, 4, 5, 6, 7, 8, 9, 11]
    assert not any(is_known(line) for line in found if folder != "tools")


def test_every_setting_is_run_or_excused(monkeypatch):
    assert not settings.missing(), "run them in tests/cuda_dry/settings.py, or excuse them there"
    # A new choice of a key, a new key, and one that is not run any more.
    new = {"head.dtype": ("fp32", "bf16", "fp8"), "head.layout": ("rows", "columns")}
    monkeypatch.setattr(settings, "choices", lambda: {key: set(new[key]) for key in new})
    run = {"head.dtype": {"bf16"}, "head.layout": set()}
    monkeypatch.setattr(settings, "values_run", lambda: run)
    assert settings.missing() == [
        *("head.dtype=fp32", "head.dtype=fp8"),
        *("head.layout=columns", "head.layout=rows"),
    ]


def test_no_setting_is_excused_that_is_run():
    known, run = settings.choices(), settings.values_run()
    for entry in settings.EXCUSED:
        key, _, value = entry.partition("=")
        assert key in known or key == "backbone.name"
        assert value not in {str(other) for other in run.get(key, ())} or not value
