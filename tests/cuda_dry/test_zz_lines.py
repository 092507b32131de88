"""Last of all: what `lines.py` lists as run here has been run."""

import pytest

from tests.cuda_dry.conftest import executed
from tests.cuda_dry.lines import is_listed_as_run, marked_lines


def test_every_line_that_is_listed_as_run_has_run(request):
    others = {item.path.name for item in request.session.items}
    needed = {"test_step.py", "test_around.py", "test_run.py"}
    if request.config.option.keyword or not needed <= others:
        pytest.skip("only some of the tests were asked for")
    listed = [line for line in marked_lines() if is_listed_as_run(line)]
    assert listed
    missed = [line for line in listed if (line.path, line.number) not in executed]
    assert not missed
