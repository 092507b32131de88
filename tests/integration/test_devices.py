"""A GPU that is named and not there is refused by every tool: it never becomes the CPU unsaid."""

import pytest
import torch

from tests.commands import exit_line

TOOLS = [
    ("benchmark_head.py", "--classes", "500", "--batch-size", "8", "--repeats", "1"),
    ("benchmark_step.py", "configs/quickstart.yaml", "--classes", "100", "--steps", "1"),
    ("rehearse.py", "configs/quickstart.yaml", "--classes", "100", "--ranks", "1"),
    ("compare_margins.py", "--quick", "--seeds", "1"),
    ("benchmark_data.py", "no_such.rec"),
    ("gpu_check.py",),
]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool[0])
def test_a_gpu_that_is_not_there(tool, device):
    name, *arguments = tool
    line = exit_line(f"tools/{name}", *arguments, "--device", device)
    assert line.startswith(f"error: the device is {device}, and torch finds 0 GPUs: see that the")


@pytest.mark.parametrize("device", ["tpu", "meta"])
@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool[0])
def test_what_is_no_device(tool, device, capsys):
    name, *arguments = tool
    assert exit_line(f"tools/{name}", *arguments, "--device", device) == 2
    assert (
        f"{device!r} is no device: cpu, cuda, or one of several, cuda:1" in capsys.readouterr().err
    )
