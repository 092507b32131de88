"""A checkpoint's index is a pickle: whatever it asks for beyond an index is refused, unrun."""

import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from kappaface_dist.checkpoint.index import read_metadata
from kappaface_dist.checkpoint.tensors import load, stored_shapes


@pytest.fixture
def folder(tmp_path):
    """A checkpoint as torch writes it, of several types and shapes."""
    state = {
        "weight": torch.arange(12.0).reshape(3, 4),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "steps": torch.zeros(5, dtype=torch.int32),
        "scalar": torch.tensor(3.0, dtype=torch.float64),
    }
    with pytest.warns(UserWarning, match="torch.distributed is (disabled|unavailable)"):
        dcp.save(state, checkpoint_id=tmp_path / "saved")
    return tmp_path / "saved"


def test_reads_what_torch_writes(folder):
    own, torchs = read_metadata(folder), dcp.FileSystemReader(folder).read_metadata()
    assert own.state_dict_metadata == torchs.state_dict_metadata
    assert own.storage_data == torchs.storage_data
    assert stored_shapes(folder) == {"weight": [3, 4], "half": [2], "steps": [5], "scalar": []}
    found = {"weight": torch.zeros(3, 4)}
    load(folder, found, {}, 0)
    assert found["weight"].tolist() == torch.arange(12.0).reshape(3, 4).tolist()


class Reduces:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "argument"),
    [(os.system, "touch {}"), (Path.touch, None), (eval, "open({!r}, 'w')"), (open, "{}")],
)
def test_code_is_refused_and_not_run(folder, tmp_path, function, argument):
    mark = tmp_path / "mark"
    args = (mark,) if argument is None else (argument.format(str(mark)),)
    index = dcp.FileSystemReader(folder).read_metadata()
    index.planner_data = Reduces(function, *args)
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    for read in (read_metadata, stored_shapes, lambda f: load(f, {"half": torch.zeros(2)}, {}, 0)):
        with pytest.raises(ValueError, match=r"is refused: its index asks for .*could run code"):
            read(folder)
    assert not mark.exists()


def test_an_entry_that_torch_would_unpickle_unguarded_is_refused(folder):
    index = dcp.FileSystemReader(folder).read_metadata()
    index.state_dict_metadata["weight"] = BytesStorageMetadata()
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(ValueError, match="refused"):
        load(folder, {"weight": torch.zeros(3, 4)}, {}, 0)


def test_an_entry_in_another_folder_is_refused(folder):
    index = dcp.FileSystemReader(folder).read_metadata()
    for place in index.storage_data.values():
        place.relative_path = "../elsewhere/__0_0.distcp"
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(ValueError, match=r"refused: its entry \w+ lies in '../elsewhere"):
        read_metadata(folder)


def test_an_index_cannot_change_a_class(folder):
    # A BUILD on a class, as in: Metadata.__init__ = str
    program = b"ctorch.distributed.checkpoint.metadata\nMetadata\n(dVversion\nVchanged\nsb."
    (folder / ".metadata").write_bytes(program)
    with pytest.raises(ValueError, match="refused: its index tries to change a class"):
        read_metadata(folder)


# Bytes that say they are 2^60 bytes long: no memory holds them.
TOO_LONG = b"\x80\x04" + pickle.BINBYTES8 + (1 << 60).to_bytes(8, "little")


@pytest.mark.parametrize("content", [b"", b"\x80\x04", pickle.dumps([1]), b"garbage" * 9, TOO_LONG])
def test_a_damaged_index_is_an_error_in_words(folder, content):
    (folder / ".metadata").write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint .* is (damaged|refused)"):
        read_metadata(folder)


def test_a_cut_off_index_is_an_error_in_words(folder):
    whole = (folder / ".metadata").read_bytes()
    for length in range(0, len(whole), 97):
        (folder / ".metadata").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is damaged"):
            read_metadata(folder)
