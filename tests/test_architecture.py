"""The house: seven layers, imports down only, no circle, files about one thing.

Each rule is a function from a tree to its faults, so that planted faults show that it can fail.
"""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAME = "kappaface_dist"
# From the top to the bottom; a folder, or a file at the package's root, imports only layers below.
LAYERS: list[set[str]] = [
    {"launch", "tools", "__main__", "embedder", "train"},
    {"margin_study", "planning", "console"},
    {"training"},
    {"made_up_faces", "models"},
    {"evaluation", "checkpoint"},
    {"data", "head"},
    {
        *("parallel", "config", "backbones"),
        *("commands", "options", "counter_random", "mixture", "restricted_pickle"),
        *("text_files", "whole_files"),
    },
]
DEPTH = {name: depth for depth, names in enumerate(LAYERS) for name in names}
MAX_LINES = 250
MAX_LOOP = 150


class Tree:
    """The files of a project: `modules` by dotted name, each with its syntax."""

    def __init__(self, root: Path):
        self.root = root
        folders = [root / NAME, root / "launch", root / "tools"]
        self.files = sorted(path for folder in folders for path in folder.rglob("*.py"))
        self.modules = {self.name(path): path for path in self.files}
        self.syntax = {
            path: ast.parse(path.read_text(encoding="utf-8"))
            for path in [*self.files, *sorted((root / "tests").rglob("*.py"))]
        }

    def name(self, path: Path) -> str:
        parts = path.relative_to(self.root).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def imports(self, path: Path) -> Iterator[tuple[str, str]]:
        """(module, name) of all that a file imports of ours, inside functions too."""
        for node in ast.walk(self.syntax[path]):
            if isinstance(node, ast.Import):
                names = [(alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import; the project imports absolutely"
                names = [(str(node.module), alias.name) for alias in node.names]
            else:
                continue
            for module, name in names:
                if f"{module}.{name}" in self.modules:
                    yield f"{module}.{name}", ""
                elif module.split(".")[0] == NAME:
                    yield module, name

    def graph(self) -> dict[str, set[str]]:
        return {
            name: {module for module, _ in self.imports(path)} - {name}
            for name, path in self.modules.items()
        }


def unit(module: str) -> str:
    """The folder of the package, or the file at its root, in which a module lies."""
    parts = module.split(".")
    return parts[1] if parts[0] == NAME and len(parts) > 1 else parts[0]


def upward_imports(tree: Tree) -> Iterator[str]:
    for module, others in tree.graph().items():
        if module == NAME:
            yield from (f"{NAME} imports {other}: it holds the version only" for other in others)
            continue
        if unit(module) not in DEPTH:
            yield f"{module} has no place in the layers of tests/test_architecture.py"
            continue
        for other in others:
            if unit(other) == unit(module) or other == NAME:
                continue
            if DEPTH.get(unit(other), -1) <= DEPTH[unit(module)]:
                yield f"{module} imports {other}, which is not below it"


def circles(tree: Tree) -> Iterator[str]:
    """Files that reach themselves; those that lead nowhere are taken away until none is left."""
    graph = tree.graph()
    while leaves := {module for module, others in graph.items() if not others & graph.keys()}:
        graph = {module: others for module, others in graph.items() if module not in leaves}
    # What is left lies on a circle or imports one; nobody imports the latter.
    while tops := graph.keys() - {other for others in graph.values() for other in others}:
        graph = {module: others for module, others in graph.items() if module not in tops}
    if graph:
        yield f"import each other in a circle: {', '.join(sorted(graph))}"


def private_names(tree: Tree) -> Iterator[str]:
    """Names with a leading underscore that are imported, or reached for in another's object."""
    for path in tree.files:
        for module, name in tree.imports(path):
            if name.startswith("_") or any(part.startswith("_") for part in module.split(".")):
                yield f"{path} imports {name or module} of {module}"
        nodes = list(ast.walk(tree.syntax[path]))
        own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
        own |= {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
        own |= {n.target.id for n in nodes if isinstance(n, ast.AnnAssign) and is_name(n.target)}
        # What other projects keep private is between them and us.
        own_or_foreign = {"self", "cls"}
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                ours = isinstance(node, ast.ImportFrom) and str(node.module).startswith(NAME)
                own_or_foreign |= {a.asname or a.name for a in node.names if not ours}
        for node in attributes:
            private = re.match(r"_[^_]", node.attr) and node.attr not in own
            if private and not (is_name(node.value) and node.value.id in own_or_foreign):
                yield f"{path}:{node.lineno} reaches for {node.attr}"


def is_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Name)


def imports_by_string(tree: Tree) -> Iterator[str]:
    for path in tree.files:
        for node in ast.walk(tree.syntax[path]):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if re.fullmatch(rf"{NAME}(\.\w+)+", node.value):
                    yield f"{path}:{node.lineno} names the module {node.value} in a string"
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func).split(".")[-1]
                literal = node.args and isinstance(node.args[0], ast.Constant)
                if called in ("import_module", "__import__") and not literal:
                    yield f"{path}:{node.lineno} imports a module whose name is computed"


def misplaced_tests(tree: Tree) -> Iterator[str]:
    """tests/unit/a/test_b.py, or test_b_more.py, tests a/b of the package, and imports it."""
    unit_tests = tree.root / "tests" / "unit"
    for path in sorted(unit_tests.rglob("test_*.py")):
        parts = path.relative_to(unit_tests).with_suffix("").parts
        folder = ".".join((NAME, *parts[:-1]))
        imported = {module for module, _ in tree.imports(path)}
        tested = [
            module
            for module in tree.modules
            if module.rpartition(".")[0] == folder
            and f"{parts[-1]}_".startswith(f"test_{module.rpartition('.')[2]}_")
        ]
        if not tested:
            yield f"{path}: {folder} holds nothing that it could be the test of"
        # A folder's __init__ hands on what its files hold.
        elif not any(m == i or m.startswith(f"{i}.") for i in imported - {NAME} for m in tested):
            yield f"{path} does not import {tested[0]}: it tests something that lies elsewhere"


def long_files(tree: Tree) -> Iterator[str]:
    for path in tree.files:
        num_lines = len(path.read_text(encoding="utf-8").splitlines())
        if num_lines > MAX_LINES:
            yield f"{path} has {num_lines} lines: is it two files?"


def long_loop(tree: Tree) -> Iterator[str]:
    trainer = tree.root / NAME / "training" / "trainer.py"
    functions = [n for n in ast.walk(tree.syntax[trainer]) if isinstance(n, ast.FunctionDef)]
    if max(function.end_lineno - function.lineno for function in functions) >= MAX_LOOP:
        yield f"a function of {trainer} has {MAX_LOOP} lines or more"


def unexplained_folders(tree: Tree) -> Iterator[str]:
    for folder in sorted({path.parent for path in tree.files if NAME in path.parts}):
        readme = folder / "README.md"
        if not readme.is_file():
            yield f"{folder} has no README.md"
            continue
        text = readme.read_text(encoding="utf-8")
        for path in sorted(folder.glob("*.py")):
            if path.name != "__init__.py" and path.name not in text:
                yield f"{readme} does not name {path.name}"


Rule = Callable[[Tree], Iterator[str]]
RULES: list[Rule] = [
    upward_imports,
    circles,
    private_names,
    imports_by_string,
    misplaced_tests,
    long_files,
    long_loop,
    unexplained_folders,
]


@pytest.fixture(scope="module")
def house() -> Tree:
    return Tree(ROOT)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps(rule: Rule, house: Tree):
    assert not list(rule(house))


def test_at_most_seven_layers():
    assert len(LAYERS) <= 7
    assert len(DEPTH) == sum(map(len, LAYERS)), "a name stands in two layers"


def test_only_tools_and_launch_at_the_top_level():
    allowed = {NAME, "launch", "configs", "tools", "tests", "docker", "runs", "data", "build"}
    found = {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and not path.name.startswith(".") and not path.name.endswith(".egg-info")
    }
    assert found <= allowed


def label(value: object) -> str:
    return getattr(value, "__name__", "")


A, B = f"{NAME}/head/a.py", f"{NAME}/head/b.py"
PLANTED: list[tuple[Rule, dict[str, str]]] = [
    (upward_imports, {A: f"from {NAME}.training import trainer"}),
    (upward_imports, {A: f"def lazy():\n    from {NAME}.evaluation.protocol import roc"}),
    (upward_imports, {A: f"import {NAME}.data.images"}),  # a neighbour is not below
    (upward_imports, {f"{NAME}/new/a.py": ""}),
    (upward_imports, {f"{NAME}/__init__.py": f"from {NAME}.data.images import x"}),
    (circles, {A: f"from {NAME}.head import b", B: f"from {NAME}.head.a import x"}),
    (circles, {A: f"def f():\n    from {NAME}.head.b import x", B: f"from {NAME}.head import a"}),
    (private_names, {A: f"from {NAME}.head.b import _hidden", B: ""}),
    (private_names, {A: "def f(head):\n    return head._pending"}),
    (imports_by_string, {A: f"import importlib\nimportlib.import_module('{NAME}.head.b')", B: ""}),
    (imports_by_string, {A: "import importlib\nimportlib.import_module('.'.join(['a', 'b']))"}),
    (misplaced_tests, {A: "", "tests/unit/test_a.py": f"from {NAME}.head import a"}),
    (misplaced_tests, {A: "", B: "", "tests/unit/head/test_a.py": f"from {NAME}.head import b"}),
    (long_files, {A: "x = 1\n" * (MAX_LINES + 1)}),
    (long_loop, {f"{NAME}/training/trainer.py": "def fit():\n" + "    x = 1\n" * MAX_LOOP}),
    (unexplained_folders, {A: ""}),
    (unexplained_folders, {A: "", f"{NAME}/head/README.md": "b.py"}),
]


@pytest.mark.parametrize(("rule", "files"), PLANTED, ids=label)
def test_a_planted_fault_is_found(rule: Rule, files: dict[str, str], tmp_path: Path):
    files = {f"{NAME}/training/trainer.py": "def fit(): ...", f"{NAME}/data/images.py": ""} | files
    files = {f"{NAME}/evaluation/protocol.py": ""} | files
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert list(rule(Tree(tmp_path)))
