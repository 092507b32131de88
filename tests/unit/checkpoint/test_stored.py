"""Tensors of a checkpoint where they lie in its files."""

import numpy as np
import pytest
import torch

from kappaface_dist.checkpoint.index import read_metadata
from kappaface_dist.checkpoint.stored import stored_pieces
from kappaface_dist.checkpoint.tensors import load, one_state, write
from kappaface_dist.parallel import ranks as parallel
from tests.processes import run_on_ranks

TYPES = (torch.float32, torch.bfloat16, torch.int32, torch.float64, torch.bool)


def tensors(num_rows):
    generator = torch.Generator().manual_seed(num_rows)
    return {
        f"{dtype} {size}": torch.randint(2, (num_rows, *size), generator=generator).to(dtype)
        for dtype in TYPES
        for size in ((), (3,), (2, 5))
    }


def save(folder):
    rows = slice(*((7 * (parallel.rank() + i) + 1) // 2 for i in (0, 1)))
    if parallel.world_size() == 1:
        rows = slice(0, 7)
    sharded = {name: tensor[rows].clone() for name, tensor in tensors(7).items()}
    replicated = {"scalar": torch.tensor(2.5), "none": torch.empty(0, 4), "view": torch.eye(4)[1]}
    write(folder, one_state(replicated, sharded, 7), {})


@pytest.mark.parametrize("num_ranks", [0, 2])
def test_pieces_hold_what_was_saved(tmp_path, num_ranks):
    run_on_ranks(num_ranks, save, tmp_path / "step_1")
    index = read_metadata(tmp_path / "step_1")
    for name, expected in tensors(7).items():
        pieces = list(stored_pieces(tmp_path / "step_1", index, name))
        assert len(pieces) == max(num_ranks, 1)
        for chunk, piece in pieces:
            first = chunk.offsets[0]
            assert torch.equal(piece, expected[first : first + len(piece)]), name
            assert piece.dtype == expected.dtype
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors(7).items()}
    others = {"scalar": torch.zeros(()), "none": torch.empty(0, 4), "view": torch.zeros(4)}
    load(tmp_path / "step_1", others, found, 7)
    for name, expected in tensors(7).items():
        assert torch.equal(found[name], expected), name
    assert others["scalar"] == 2.5
    assert torch.equal(others["view"], torch.eye(4)[1])


def test_a_file_that_holds_something_else_is_refused(tmp_path):
    folder = tmp_path / "step_1"
    write(folder, one_state({"x": torch.arange(100.0)}, {}, 0), {})
    index = read_metadata(folder)
    file = next(folder.glob("*.distcp"))
    data = file.read_bytes()
    for wrong in (b"x" * len(data), data[: len(data) // 2], b""):
        file.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"is damaged: .* does not hold x as expected"):
            list(stored_pieces(folder, index, "x"))
    file.write_bytes(data)
    ((_, piece),) = stored_pieces(folder, index, "x")
    np.testing.assert_array_equal(piece.numpy(), np.arange(100.0))
