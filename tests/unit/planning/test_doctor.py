"""What the doctor says of a computer."""

import resource
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from kappaface_dist.planning.doctor import (
    ABSENT,
    BAD,
    OK,
    examine,
    fault_of,
    open_files,
    optional,
    required,
    shared_memory,
)


def test_this_computer_can_train(tmp_path):
    found = {finding.name: finding for finding in examine(tmp_path)}
    assert [f for f in found.values() if f.verdict == BAD] == []
    assert found["Python"].verdict == OK
    assert str(tmp_path) in found["disk"].text
    assert found["CUDA"].text.startswith("torch ")


def test_no_folder_no_report(tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        examine(tmp_path / "none")


def test_what_is_too_old_or_missing_is_named():
    mine = metadata.version("numpy")
    lines = ["numpy>=1.0", "numpy>=999", "no-such-package-here>=3"]
    found = list(required([Requirement(line) for line in lines]))
    assert [f.verdict for f in found] == [BAD, BAD]
    assert found[0].text == f"numpy {mine} is too old, expected >=999: pip install -U"
    assert found[1].text == "no-such-package-here is not installed, expected >=3"
    (fine,) = required([Requirement("numpy>=1.0")])
    assert (fine.verdict, fine.text) == (OK, "all 1 that are required, none too old")


def test_a_version_before_its_release_is_one():
    assert fault_of(Requirement(f"torch>={metadata.version('torch').split('+')[0]}")) == ""


def test_an_extra_says_what_to_install():
    wanted = [Requirement("no-such-package-here>=3")]
    found = optional("export", "ONNX files", wanted)
    assert found.verdict == ABSENT
    assert found.text.endswith("pip install 'kappaface_dist[export]'")
    assert optional("export", "ONNX files", [Requirement("numpy")]).verdict == OK


def test_too_few_open_files(tmp_path):
    assert open_files(lambda _: (256, 1024)).text == "256 at once: ulimit -n 1024 before"
    assert open_files(lambda _: (resource.RLIM_INFINITY,) * 2).verdict == OK
    assert shared_memory(tmp_path / "none").verdict == ABSENT
