"""Published .pth files, written as InsightFace's trainer writes them."""

import os
import random

import pytest
import torch

from kappaface_dist.backbones import build_backbone
from kappaface_dist.models.published import load_published, read_published


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


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old pickle"])
def test_a_damaged_file_is_one_sentence(zipped, tmp_path):
    path = tmp_path / "m.pth"
    state = {"bn.weight": torch.ones(4)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    generator = random.Random(0)
    reasons = []
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[generator.randrange(len(whole))] = generator.randrange(256)
        path.write_bytes(damaged[: generator.choice([len(whole), generator.randrange(len(whole))])])
        try:
            read_published(path)
        except ValueError as error:
            reasons.append(str(error))
    assert len(reasons) > 100
    assert all(reason.startswith(str(path)) for reason in reasons)


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
