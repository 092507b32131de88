"""Fixtures shared by all tests."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

LOGGER = logging.getLogger("kappaface_dist")
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items):
    """Leave out, and say so, what takes minutes and whose parts other tests look at."""
    if os.environ.get("LONG_TESTS"):
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="takes long: make test-all runs it"))


@pytest.fixture(autouse=True)
def log_as_it_was():
    """A test that starts a run's log must not take the log from those after it."""
    yield
    LOGGER.handlers.clear()
    LOGGER.propagate = True
    LOGGER.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def shared_data():
    """The folder of small real files; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the folder of real test files is absent: {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def shared_cases(shared_data, tmp_path_factory):
    """Inputs in odd forms, made anew; tests that need them are skipped where they cannot be."""
    script = SHARED_DATA.parent / "cases" / "make_cases.py"
    if not script.is_file():
        pytest.skip(f"the maker of odd inputs is absent: {script}")
    for module in ("cv2", "pyarrow"):
        pytest.importorskip(module, reason=f"the odd inputs are made with {module}")
    folder = tmp_path_factory.mktemp("cases") / "made"
    command = [sys.executable, script, folder, "--photos", shared_data / "orl"]
    subprocess.run(command, check=True, timeout=120)
    return folder
