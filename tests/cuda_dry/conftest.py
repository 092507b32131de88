"""These tests need a torch that was built for CUDA, and no GPU: `make test-cuda-dry` has one."""

import ast
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch

from kappaface_dist.config.datasets import datasets
from kappaface_dist.config.file import load_config
from kappaface_dist.data.loading.loader import Batch
from kappaface_dist.planning.pretend_gpu import DEVICE, pretend_gpu
from kappaface_dist.planning.pretend_group import pretend_ranks
from kappaface_dist.training.build import build_learner
from tests.cuda_dry.lines import ROOT, is_listed_as_run, marked_lines
from tests.cuda_dry.settings import BASE
from tests.planted import changed, module_of

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
    """Which of the lines that depend on a GPU run in these tests.

    Each has a note before it: a tracer, which Python asks at every call, takes as long as the rest.
    """
    wanted = {}
    for line in marked_lines():
        if is_listed_as_run(line):
            wanted.setdefault(line.path, set()).add(line.number)
    with ExitStack() as stack:
        for path, numbers in wanted.items():
            tree = Notes(path, numbers).visit(ast.parse((ROOT / path).read_text("utf-8")))
            module = module_of(path)
            module.note_executed = executed.add
            stack.enter_context(changed(module, compile(tree, ROOT / path, "exec")))
        yield


class Notes(ast.NodeTransformer):
    """Puts a note before each statement that begins in one of these lines."""

    def __init__(self, path, numbers):
        self.path, self.numbers = path, numbers

    def generic_visit(self, node):
        super().generic_visit(node)
        for name in ("body", "orelse", "finalbody"):
            statements = getattr(node, name, None)
            if isinstance(statements, list):
                setattr(node, name, [part for one in statements for part in (*self.note(one), one)])
        return node

    def note(self, statement):
        if statement.lineno not in self.numbers:
            return []
        note = ast.parse(f"note_executed(({self.path!r}, {statement.lineno}))").body
        for part in ast.walk(note[0]):
            ast.copy_location(part, statement)
        return note


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
    """What configs/glint360k.yaml trains, with these settings changed, on fake tensors.

    Args:
        num_classes: of each dataset.
    """
    config = configure(*overrides)
    counts = {name: np.full(num_classes, 50) for name in datasets(config)}
    return build_learner(config, counts, DEVICE)


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
