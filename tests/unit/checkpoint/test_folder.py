"""Which checkpoints are whole, which is chosen, which are deleted."""

import json
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from kappaface_dist.checkpoint import folder as checkpoint_folder
from kappaface_dist.checkpoint.folder import (
    check_free_space,
    checksum,
    choose,
    complete_checkpoints,
    damages,
    delete_old,
    finish_interrupted_saves,
    part_folder,
    publish,
    set_aside,
    step_folder,
)


def write(root, step, accuracy=None, *, published=True):
    """A checkpoint in which the tensors are a few bytes."""
    folder = step_folder(root, step)
    part = part_folder(folder)
    part.mkdir(parents=True)
    (part / ".metadata").write_bytes(b"index")
    (part / "__0_0.distcp").write_bytes(bytes(range(256)) * 8)
    metrics = {} if accuracy is None else {"accuracy/unseen": accuracy}
    (part / "state.json").write_text(json.dumps({"metrics": metrics}))
    if published:
        publish(folder, {path.name: checksum(path) for path in part.iterdir()})
    return folder


def names(root):
    return sorted(path.name for path in root.iterdir())


def test_only_published_ones_are_complete(tmp_path):
    write(tmp_path, 10)
    write(tmp_path, 20, published=False)
    shutil.copytree(tmp_path / "step_00000010", tmp_path / "step_00000030.old")
    assert complete_checkpoints(tmp_path) == [tmp_path / "step_00000010"]
    assert choose(tmp_path, "auto") == tmp_path / "step_00000010"


def test_checksums_are_those_of_sha256sum(tmp_path):
    folder = write(tmp_path, 10)
    done = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("OK") == 3


@pytest.mark.parametrize("file", [".metadata", "state.json", "__0_0.distcp"])
def test_a_changed_byte_or_a_missing_file_is_found(tmp_path, file):
    folder = write(tmp_path, 10)
    assert damages(folder, 0, 1) == []
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / file).write_bytes(content)
    assert damages(folder, 0, 1) == [f"{file} does not have its checksum"]
    # Three ranks share the work, and one of them finds it.
    found = [problem for rank in range(3) for problem in damages(folder, rank, 3)]
    assert found == damages(folder, 0, 1)
    (folder / file).unlink()
    assert damages(folder, 0, 1) == [f"{file} is missing"]


def test_a_crash_between_the_two_renames_is_finished(tmp_path):
    folder = write(tmp_path, 10)
    part = part_folder(folder)
    shutil.copytree(folder, part)
    folder.rename(folder.with_name(folder.name + ".old"))
    finish_interrupted_saves(tmp_path)
    assert complete_checkpoints(tmp_path) == [folder]


def test_half_written_checksums_do_not_make_a_checkpoint(tmp_path):
    folder = write(tmp_path, 10)
    folder.rename(part_folder(folder))
    sums = part_folder(folder) / "SHA256SUMS"
    whole = sums.read_text()
    for length in (0, 30, len(whole) - 70):
        sums.write_text(whole[:length])
        finish_interrupted_saves(tmp_path)
        assert complete_checkpoints(tmp_path) == []
    sums.write_text(whole)
    finish_interrupted_saves(tmp_path)
    assert complete_checkpoints(tmp_path) == [folder]


def test_the_last_and_the_best_stay(tmp_path):
    for step, accuracy in ((10, 0.7), (20, 0.9), (30, 0.8), (40, None), (50, 0.6)):
        write(tmp_path, step, accuracy)
    write(tmp_path, 60, published=False)
    delete_old(tmp_path, 2, "accuracy/unseen")
    assert names(tmp_path) == ["step_00000020", "step_00000040", "step_00000050"]
    delete_old(tmp_path, 1, None)
    assert names(tmp_path) == ["step_00000050"]


def test_a_crash_while_deleting_leaves_no_half_checkpoint_of_that_name(tmp_path, monkeypatch):
    for step in (10, 20):
        write(tmp_path, step)

    def crashes(folder):
        next(iter(folder.iterdir())).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_folder.shutil, "rmtree", crashes)
    with pytest.raises(KeyboardInterrupt):
        delete_old(tmp_path, 1, None)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step_00000020"]
    monkeypatch.undo()
    delete_old(tmp_path, 1, None)
    assert names(tmp_path) == ["step_00000020"]


def test_a_damaged_one_is_not_chosen_again(tmp_path):
    write(tmp_path, 10)
    place = set_aside(write(tmp_path, 20))
    assert place.name == "step_00000020.damaged"
    assert choose(tmp_path, "auto").name == "step_00000010"


def test_resume_means_what_it_says(tmp_path, monkeypatch):
    assert choose(tmp_path, "auto") is None
    assert choose(tmp_path, "never") is None
    first, second = write(tmp_path / "a", 10), write(tmp_path / "a", 20)
    assert choose(tmp_path / "b", str(first)) == first
    assert choose(tmp_path / "a", str(second)) == second
    with pytest.raises(ValueError, match=r"run\.resume is never, but .*step_00000020 exists"):
        choose(tmp_path / "a", "never")
    with pytest.raises(ValueError, match=r"has gone on to .*step_00000020"):
        choose(tmp_path / "a", str(first))
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        choose(tmp_path / "b", str(tmp_path))
    # Started again by torchrun or Slurm, the run goes on from its own last checkpoint.
    for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"):
        monkeypatch.setenv(name, "1")
        assert choose(tmp_path / "a", "never") == second
        assert choose(tmp_path / "a", str(first)) == second
        assert choose(tmp_path / "b", str(first)) == first
        monkeypatch.delenv(name)


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    check_free_space(tmp_path, 1000)
    monkeypatch.setattr(checkpoint_folder.shutil, "disk_usage", lambda _: SimpleNamespace(free=5e8))
    check_free_space(tmp_path, 400_000_000)
    with pytest.raises(RuntimeError, match=r"a checkpoint of 600 MB needs 613 MB .* 500 MB are"):
        check_free_space(tmp_path, 600_000_000)
