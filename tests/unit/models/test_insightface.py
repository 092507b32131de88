"""Published checkpoints: every form they come in, what does not match, and what is refused."""

import pickle

import pytest
import torch

from kappaface_dist.backbones import build_backbone
from kappaface_dist.models.insightface import import_backbone


def published(name="r18", image_size=112, embedding_size=512):
    torch.manual_seed(1)
    return build_backbone(name, embedding_size=embedding_size, image_size=image_size).state_dict()


@pytest.mark.parametrize(
    "form",
    [
        lambda state: state,
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"epoch": 3, "state_dict_backbone": state, "state_optimizer": {"lr": 0.1}},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    ],
    ids=["bare", "ddp", "arcface_torch", "wrapped", "without counters"],
)
def test_every_form_is_taken_over(form, tmp_path):
    state = published(image_size=32, embedding_size=64)
    torch.save(form(state), tmp_path / "backbone.pth")
    model, settings, report = import_backbone(tmp_path / "backbone.pth", image_size=32)
    assert (settings.name, settings.embedding_size, settings.image_size) == ("r18", 64, 32)
    assert report.complete
    assert report.lines() == [f"{len(report.matched)} tensors matched"]
    for key in report.matched:
        assert torch.equal(model.state_dict()[key], state[key])
    assert len(report.matched) >= len(
        [key for key in state if not key.endswith("num_batches_tracked")]
    )
    assert not model.training


def test_the_backbone_is_found_by_its_tensors(tmp_path):
    for name in ("r34", "r50", "tiny", "tiny_gn"):
        torch.save(published(name, 32, 16), tmp_path / "x.pth")
        assert import_backbone(tmp_path / "x.pth", image_size=32)[1].name == name


def test_unmatched_keys_are_named(tmp_path):
    state = published(image_size=32, embedding_size=64)
    kept = state.pop("layer1.0.conv1.weight")
    state["head.weight"] = torch.zeros(3, 3)
    state["layer2.0.bn1.weight"] = torch.zeros(7)
    torch.save(state, tmp_path / "x.pth")
    model, _, report = import_backbone(tmp_path / "x.pth", image_size=32)
    assert not report.complete
    assert report.missing == ["layer1.0.conv1.weight"]
    assert report.unexpected == ["head.weight"]
    assert report.wrong_shape == ["layer2.0.bn1.weight (7,) instead of (64,)"]
    assert report.lines()[1:] == [
        "1 not in the file: layer1.0.conv1.weight",
        "1 not in the model: head.weight",
        "1 of another shape: layer2.0.bn1.weight (7,) instead of (64,)",
    ]
    assert model.state_dict()["layer1.0.conv1.weight"].shape == kept.shape
    # Another image size is another matrix at the end.
    torch.save(published(image_size=48, embedding_size=64), tmp_path / "y.pth")
    assert import_backbone(tmp_path / "y.pth", image_size=32)[2].wrong_shape == [
        "fc.weight (64, 4608) instead of (64, 2048)"
    ]


class Attack:
    def __reduce__(self):
        return print, ("this ran",)


def test_what_is_no_backbone_is_refused(tmp_path, capsys):
    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps({"a": Attack()}))
    with pytest.raises(ValueError, match="not a checkpoint of plain tensors"):
        import_backbone(path)
    torch.save({"conv1.weight": Attack()}, path)
    with pytest.raises(ValueError, match="could run code and is refused"):
        import_backbone(path)
    assert "this ran" not in capsys.readouterr().out
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a checkpoint of plain tensors"):
        import_backbone(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds a list, expected a state_dict"):
        import_backbone(path)
    torch.save({"weight": torch.zeros(3, 3)}, path)
    with pytest.raises(ValueError, match="no normalisation among them"):
        import_backbone(path)
    torch.save({f"w{i}": torch.zeros(3) for i in range(90)}, path)
    with pytest.raises(ValueError, match="is none of r18"):
        import_backbone(path)
    with pytest.raises(FileNotFoundError, match=r"expected a backbone checkpoint \(\.pth\)"):
        import_backbone(tmp_path / "absent.pth")
