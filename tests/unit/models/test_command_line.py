"""How a tool that embeds is told to compute: on which device, with how many threads."""

import argparse
import os

import pytest
import torch

from kappaface_dist.models.command_line import start
from kappaface_dist.models.export import BackboneSettings, save_backbone
from kappaface_dist.models.exported import read_onnx
from kappaface_dist.models.onnx_export import export_onnx
from kappaface_dist.models.saved_model import open_model
from tests.unit.backbones.calibrated import calibrated_backbone


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One network as backbone.safetensors and as backbone.onnx."""
    root = tmp_path_factory.mktemp("models")
    network = calibrated_backbone("tiny", 16, 32)
    settings = BackboneSettings("tiny", 16, 32)
    save_backbone(root / "backbone.safetensors", network, **vars(settings))
    export_onnx(root / "backbone.onnx", network.eval(), settings)
    return root


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def asked(model, **others):
    found = {"model": str(model), "batch_size": 64, "device": None, "threads": 0}
    return argparse.Namespace(**(found | others))


def test_threads_and_device(folder):
    before = torch.get_num_threads()
    model, device = start(asked(folder, device="cpu"))
    assert (device.type, torch.get_num_threads()) == ("cpu", before)
    assert next(model.network.parameters()).device.type == "cpu"
    start(asked(folder, threads=3))
    assert torch.get_num_threads() == 3


def test_onnxruntime_takes_as_many_threads(folder):
    """As the system counts them: one of them is the caller's own."""
    pytest.importorskip("onnxruntime")
    found, kept = {}, []
    for threads in (1, 2, 5):
        before = len(os.listdir("/proc/self/task"))
        kept.append(open_model(folder / "backbone.onnx", num_threads=threads))
        found[threads] = len(os.listdir("/proc/self/task")) - before
    assert found == {1: 0, 2: 1, 5: 4}
    assert not read_onnx(folder / "backbone.onnx", on_cpu=True)[0].on_gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_device_that_is_not_here_is_refused(folder, device):
    with pytest.raises(ValueError, match=f"the device is {device}, and torch finds 0 GPUs"):
        start(asked(folder, device=device))


def test_no_batch_is_refused(folder):
    with pytest.raises(ValueError, match="--batch-size is 0, expected 1 or more"):
        start(asked(folder, batch_size=0))
