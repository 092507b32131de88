"""These tests need a torch that was built for CUDA, and no GPU: `make test-cuda-dry` has one."""

import sys
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from kappaface_dist.config.file import load_config
from kappaface_dist.data.loading.loader import Batch
from kappaface_dist.planning.pretend_gpu import DEVICE, pretend_gpu
from kappaface_dist.planning.pretend_group import pretend_ranks
from kappaface_dist.training.build import build_learner
from tests.cuda_dry.lines import ROOT, marked_lines
from tests.cuda_dry.settings import BASE

NUM_CLASSES = 5_000
# Instead of r100 at 112 pixels, where the network is not what is looked at.
TINY = [
    "backbone.name=tiny",
    "backbone.embedding_size=128",
    "data.image_size=32",
    "data.batch_size=4",
]
executed: set[tuple[str, int]] = set()


def pytest_collection_modifyitems(items):
    if torch.backends.cuda.is_built() and not torch.cuda.is_available():
        return
    why = "a GPU is here: its own tests run" if torch.cuda.is_available() else "a CPU build"
    for item in items:
        if "cuda_dry" in str(item.path):
            item.add_marker(pytest.mark.skip(reason=f"torch {torch.__version__}: {why}"))


@pytest.fixture(scope="session", autouse=True)
def note_executed_lines():
    """Which of the lines that depend on a GPU run in these tests."""
    wanted = {}
    for line in marked_lines():
        wanted.setdefault(str(ROOT / line.path), {})[line.number] = line.path

    def in_function(frame, event, _):
        if event == "line":
            name = wanted[frame.f_code.co_filename].get(frame.f_lineno)
            if name is not None:
                executed.add((name, frame.f_lineno))
        return in_function

    def in_call(frame, *_):
        return in_function if frame.f_code.co_filename in wanted else None

    before = sys.gettrace()
    sys.settrace(in_call)
    threading.settrace(in_call)
    yield
    sys.settrace(before)
    threading.settrace(None)


def configure(*overrides):
    return load_config(BASE, ["data.train=none", *overrides])


@contextmanager
def on_ranks(num_ranks, rank=0):
    """Inside, this process is one of several, each with a GPU that is not there."""
    with pretend_ranks(num_ranks, rank), pretend_gpu() as seen:
        yield seen


@pytest.fixture
def gpu():
    with on_ranks(1) as seen:
        yield seen


def learner_of(*overrides, num_classes=NUM_CLASSES):
    """What configs/glint360k.yaml trains, with these settings changed, on fake tensors."""
    return build_learner(configure(*overrides), np.full(num_classes, 50), DEVICE)


def batches_of(learner):
    """The micro-batches of a step, on the device."""
    data, size = learner.config.data, learner.config.data.image_size
    return [
        Batch(
            torch.empty(data.batch_size, 3, size, size, device=DEVICE),
            torch.empty(data.batch_size, dtype=torch.int64, device=DEVICE),
            slot_B=torch.empty(data.batch_size, dtype=torch.int32, device=DEVICE),
        )
        for _ in range(learner.config.optimizer.accumulate)
    ]
