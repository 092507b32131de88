"""Imports go down only, and files stay short enough to be about one thing."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "kappaface_dist"
# From the top of the design's layering to the bottom; a module imports only layers below its own.
LAYERS = [
    {"launch", "tools"},
    {"trainer", "planning"},
    {"recovery"},
    {"run_state"},
    {"loss_guard", "saver", "train_step", "transplant"},
    {"margin_pictures"},
    {"report", "margin_report"},
    {"verification"},
    {"model_card", "embedder", "embedding_files"},
    {"build", "saved_model"},
    {"comparison"},
    {"checkpoint", "evaluation", "metrics"},
    {"checkpoint_folder", "identity_map"},
    {"checkpoint_index"},
    {"optim"},
    {"head"},
    {"backbones"},
    {"data"},
    {"data_parallel", "profiling"},
    {"signals", "watchdog"},
    {"parallel"},
    {"rendezvous"},
    {"config_file", "commands", "restricted_pickle"},
    {"config"},
]
DEPTH = {name: depth for depth, names in enumerate(LAYERS) for name in names}
MAX_LINES = 260
FILES = sorted(
    path for folder in (PACKAGE, ROOT / "launch", ROOT / "tools") for path in folder.rglob("*.py")
)


def layer_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "kappaface_dist" else parts[0]


def imported_layers(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; the project imports absolutely"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {
        name.split(".")[1]
        for name in names
        if name.startswith("kappaface_dist.") and name.split(".")[1] in DEPTH
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path):
    own = layer_of(path)
    if own == "__init__":
        return
    assert own in DEPTH, f"{own} has no place in the layering of tests/test_architecture.py"
    for other in imported_layers(path) - {own}:
        assert DEPTH[other] > DEPTH[own], f"{path} ({own}) imports {other}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_about_one_thing(path):
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert num_lines <= MAX_LINES, f"{path} has {num_lines} lines: is it two files?"


def test_training_loop_stays_short():
    trainer = PACKAGE / "trainer.py"
    if trainer.exists():
        loops = [
            node
            for node in ast.walk(ast.parse(trainer.read_text(encoding="utf-8")))
            if isinstance(node, ast.FunctionDef)
        ]
        assert max(node.end_lineno - node.lineno for node in loops) < 150


def test_only_tools_and_launch_at_the_top_level():
    allowed = {"kappaface_dist", "launch", "configs", "tools", "tests", "docker", "runs", "data"}
    allowed |= {"build"}
    found = {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and not path.name.startswith(".") and not path.name.endswith(".egg-info")
    }
    assert found <= allowed
