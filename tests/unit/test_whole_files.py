import pytest

from kappaface_dist.whole_files import whole_file


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_has_its_name_only_when_it_is_complete(tmp_path, shared):
    path = tmp_path / "new" / "a.json"
    with whole_file(path, shared=shared) as unfinished:
        unfinished.write_text("half")
        assert unfinished.parent == path.parent
        assert not path.exists()
        unfinished.write_text("whole")
    assert path.read_text() == "whole"
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("shared", [False, True])
def test_an_error_leaves_what_was_there(tmp_path, shared, error):
    path = tmp_path / "a.json"
    path.write_text("before")
    with pytest.raises(error), whole_file(path, shared=shared) as unfinished:  # noqa: PT012
        unfinished.write_text("half")
        raise error
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_block_that_fails_before_it_writes_tells_its_own_error(tmp_path):
    with pytest.raises(ValueError, match="first"), whole_file(tmp_path / "a"):
        raise ValueError("first")


def test_what_a_killed_process_left_is_overwritten(tmp_path):
    (tmp_path / "a.part").write_text("left over")
    with whole_file(tmp_path / "a") as unfinished:
        assert unfinished == tmp_path / "a.part"
        unfinished.write_text("b")
    assert (tmp_path / "a").read_text() == "b"
    assert not unfinished.exists()


def test_two_at_once_do_not_meet(tmp_path):
    path = tmp_path / "a"
    with whole_file(path, shared=True) as first, whole_file(path, shared=True) as second:
        first.write_text("1")
        second.write_text("2")
        assert first != second
    assert path.read_text() == "1"  # the outer one ends last


def test_a_file_that_was_not_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "a"):
        pass
