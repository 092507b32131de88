"""Published .pth files, written as InsightFace's trainer writes them."""

import os

import pytest
import torch

from kappaface_dist.backbones import build_backbone
from kappaface_dist.backbones.published import load_published


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    return build_backbone("r18", embedding_size=16, image_size=32)


def fresh():
    torch.manual_seed(2)
    return build_backbone("r18", embedding_size=16, image_size=32)


@pytest.mark.parametrize("form", ["plain", "module.", "checkpoint", "no counts"])
def test_every_published_form_loads(network, tmp_path, form):
    state = network.state_dict()
    content = {
        "plain": state,
        "module.": {f"module.{name}": tensor for name, tensor in state.items()},
        "checkpoint": {"epoch": 3, "state_dict_backbone": state},
        "no counts": {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    }[form]
    torch.save(content, tmp_path / "model.pth")
    loaded = fresh()
    load_published(tmp_path / "model.pth", loaded)
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)


class Touches:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_file_that_carries_code_is_refused_and_not_run(network, tmp_path):
    torch.save({**network.state_dict(), "extra": Touches(tmp_path / "mark")}, tmp_path / "m.pth")
    with pytest.raises(ValueError, match="is refused"):
        load_published(tmp_path / "m.pth", fresh())
    assert not (tmp_path / "mark").exists()


def test_other_networks_and_files_are_named(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "m.pth")
    other = build_backbone("r18", embedding_size=8, image_size=32)
    with pytest.raises(ValueError, match=r"tensors differ, .* is \(16.*expected \(8"):
        load_published(tmp_path / "m.pth", other)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list"):
        load_published(tmp_path / "list.pth", fresh())
    (tmp_path / "cut.pth").write_bytes((tmp_path / "m.pth").read_bytes()[:1000])
    with pytest.raises(ValueError, match="is not a checkpoint of plain tensors"):
        load_published(tmp_path / "cut.pth", fresh())
    with pytest.raises(FileNotFoundError):
        load_published(tmp_path / "none.pth", fresh())
