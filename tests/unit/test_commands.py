"""What the command-line programs share."""

import json

import pytest

from kappaface_dist import commands


def test_a_report_goes_where_it_is_asked_for(tmp_path, capsys):
    report = {"images": 3}
    commands.write_json(None, report)
    commands.write_json("-", report)
    assert json.loads(capsys.readouterr().out) == report
    commands.write_json(str(tmp_path / "new" / "report.json"), report)
    assert json.loads((tmp_path / "new" / "report.json").read_text()) == report


def test_a_mistake_is_one_line_and_a_fault_of_ours_is_not():
    def fail(error):
        raise error

    with pytest.raises(SystemExit) as stopped:
        commands.run(lambda: fail(ValueError("no such file")))
    assert stopped.value.code == "error: no such file"
    with pytest.raises(AssertionError):
        commands.run(lambda: fail(AssertionError()))


def test_the_progress_bar_waits_for_the_first_image(capsys):
    progress = commands.image_progress()
    assert capsys.readouterr().err == ""
    progress(3, 7)
    progress(7, 7)
    assert "7/7" in capsys.readouterr().err
