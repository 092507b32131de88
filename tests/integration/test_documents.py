"""Every command and every example that the documents show is run, at a small size.

They run in this process, in one folder, in the order of the pages: what one writes the next one
reads. Names that stand for a user's own (MODEL, IMAGES) are links there. Of what needs a GPU, a
cluster or Docker the files, options and settings are looked at.
"""

import os
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from kappaface_dist import console
from kappaface_dist.config.file import load_config
from kappaface_dist.data.images import encode_jpeg
from tests.commands import ROOT
from tests.unit.models.test_published_mobilefacenet import published_file

PAGES = [ROOT / f"{name}README.md" for name in ("", "tools/", "configs/", "launch/", "docker/")]
SETUP = (ROOT / "setup.py").read_text("utf-8")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)#]+)")
ONE_NETWORK = "backbone.name=tiny backbone.embedding_size=16 data.image_size=32 data.batch_size=8"
SMALLER = {
    "train": f"{ONE_NETWORK} run.epochs=4 log.every=1 log.tensorboard=false evaluate.every=null",
    "plan": ONE_NETWORK,
    "rehearse": ONE_NETWORK,
    "watch": "--once",
    "export": "--formats safetensors",
}
# What takes long even when small, and the test that runs it.
ELSEWHERE = {
    "compare-margins": "tests/integration/test_compare_margins.py",
    "tools/benchmark_step.py": "tests/integration/test_benchmark_step.py",
    "--calibration": "tests/integration/test_benchmark_step.py",
    "find-overlap": "tests/integration/test_find_overlap.py",
    "--fake": "tests/cuda_dry/test_operations.py",  # needs a torch for CUDA
}
# Starts of lines that need what is not here, or that other tests run.
NOT_RUN = ("make", "pip", "sbatch", "docker", "source", "git")


def blocks(page, language):
    """The fenced blocks of one language."""
    return [text for kind, text in BLOCK.findall(page.read_text("utf-8")) if kind == language]


def commands_of(page):
    """The words of each command line, in the order of the page, then those inside its sentences."""
    lines = [line for text in blocks(page, "") for line in text.replace("\\\n", " ").splitlines()]
    prose = BLOCK.sub("", page.read_text("utf-8"))
    inside = re.findall(r"`((?:kappaface|pip|make|docker|sbatch) [^`]*)`", prose)
    for line in inside:
        name = line.split()[1]
        if line.startswith("kappaface") and len(line.split()) == 2:  # a name alone
            assert name in [*console.programs(), *console.OWN, "NAME"], line
        elif not re.search(r"\b(CONFIG|PHOTOS)", line):
            lines.append(" ".join(line.split()))
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


ALL = [(page, words) for page in PAGES for words in commands_of(page)]


def photos(folder, people, each, seed):
    random = np.random.default_rng(seed)
    for person in range(people):
        (folder / f"person {person}").mkdir(parents=True)
        face = random.integers(0, 255, (14, 14, 3))
        for number in range(each):
            noisy = (face + random.integers(-30, 30, face.shape)).clip(0, 255).astype(np.uint8)
            content = encode_jpeg(np.kron(noisy, np.ones((8, 8, 1), np.uint8)))
            (folder / f"person {person}" / f"{number}.jpg").write_bytes(content)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photos, and the links for what the pages leave to the reader."""
    folder = tmp_path_factory.mktemp("reader")
    photos(folder / "photos/train", people=8, each=4, seed=0)
    photos(folder / "photos/unseen", people=12, each=4, seed=1)
    for name, target in (("launch", ROOT / "launch"), ("tools", ROOT / "tools")):
        (folder / name).symlink_to(target)
    for name in ("IMAGES", "P", "G"):
        (folder / name).symlink_to("photos/unseen")
    (folder / "D").symlink_to("photos/train")
    (folder / "MODEL").symlink_to("runs/mine")
    (folder / "runs").mkdir()
    for name in ("NAME", "quickstart"):
        (folder / "runs" / name).symlink_to("mine")
    (folder / "lfw.bin").symlink_to("data/mine/unseen.bin")
    shutil.copy(folder / "photos/unseen/person 0/0.jpg", folder / "a.jpg")
    shutil.copy(folder / "photos/unseen/person 0/1.jpg", folder / "b.jpg")
    published_file("mbf", folder / "backbone.pth")
    return folder


def run_here(words, monkeypatch):
    """A console command or a torchrun line, as one process; its exit code."""
    if words[0] == "torchrun":
        words = [word for word in words[1:] if not word.startswith("--nproc")]
        module = words[0] == "-m"
        program = words[1].removeprefix("kappaface_dist.") if module else Path(words[0]).stem
        words = ["kappaface", program, *words[1 + module :]]
    assert words[0] == "kappaface", words
    name = words[1].replace("_", "-") if len(words) > 1 else ""
    more = shlex.split(SMALLER.get(name, ""))
    if name == "train" and any(word.startswith("configs/") for word in words):
        more = ["--print-config"]  # data of the field; it must load with these settings
    monkeypatch.setattr(sys, "argv", [*words, *more])
    try:
        console.main()
    except SystemExit as stopped:
        return stopped.code
    return 0


def test_every_command_of_the_pages_runs(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr(os, "execv", None)  # on a machine with GPUs torchrun would take over
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    first = [words for _, words in ALL if words[:2] == ["kappaface", "make-pairs"]][:1]
    done = []
    for words in first + [words for _, words in ALL if words[0] not in NOT_RUN]:
        if words in done or ELSEWHERE.keys() & set(words):
            continue
        done.append(words)
        if words[1:2] == ["init"]:
            Path(f"{Path(words[2]).name}.yaml").unlink(missing_ok=True)
        if words[1:2] == ["evaluate-templates"]:
            run_here(["kappaface", "make-templates", "IJBC", "--people", "12"], monkeypatch)
        code = run_here(words, monkeypatch)
        assert not code, f"{shlex.join(words)}: {code}\n{capsys.readouterr().err[-2000:]}"
    names = {words[1] for words in done if words[0] == "kappaface" and len(words) > 1}
    assert {"init", "train", "evaluate", "export", "watch", "plan", "identify"} <= names
    assert (place / "watch.html").is_file()
    assert all((ROOT / path).is_file() for path in ELSEWHERE.values())
    for number, text in enumerate(block for page in PAGES for block in blocks(page, "python")):
        path = place / f"example_{number}.py"
        path.write_text(EXAMPLE_NAMES + text, encoding="utf-8")
        runpy.run_path(str(path))


EXAMPLE_NAMES = """
import torch
num_classes, counts = 10, torch.full((10,), 3)
embeddings, labels = torch.randn(4, 512, requires_grad=True), torch.arange(4)
"""


@pytest.mark.parametrize(
    "words", [words for _, words in ALL if words[0] in NOT_RUN], ids=lambda words: " ".join(words)
)
def test_what_cannot_be_run_here_names_what_there_is(words):
    makefile = (ROOT / "Makefile").read_text()
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE)
    elif words[0] == "pip":
        extras = re.findall(r"\[([\w-]+)\]", " ".join(words))
        assert words[1] == "install"
        assert all(f'"{extra}": [' in SETUP for extra in extras)
    elif words[0] == "docker" and words[1] == "build":
        assert (ROOT / words[words.index("-f") + 1]).is_file()
        arguments = [word.split("=")[0] for word in words if word.startswith("BASE_IMAGE=")]
        assert all(f"ARG {name}" in (ROOT / "docker/Dockerfile").read_text() for name in arguments)
    elif words[0] == "sbatch":
        (script,) = [place for place, word in enumerate(words) if word.endswith(".sbatch")]
        assert (ROOT / words[script]).is_file()
        settings = [word.replace("$SLURM_ARRAY_TASK_ID", "0") for word in words[script + 2 :]]
        load_config(ROOT / words[script + 1], settings)
    elif words[0] == "docker":
        after = words[next(i for i, w in enumerate(words) if w.startswith("kappaface_dist")) + 1 :]
        if after != ["--check"]:
            load_config(ROOT / after[0], after[1:])


def test_the_workflows_run_what_there_is():
    """Their targets, commands, settings, files and extras; they are run by hand only, and there."""
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        jobs = yaml.safe_load(path.read_text("utf-8"))["jobs"].values()
        runs = "\n".join(step["run"] for job in jobs for step in job["steps"] if "run" in step)
        lines = re.sub(r"\\\n|\$\{\{.*?\}\}", " ", runs).splitlines()
        for line in filter(str.strip, lines):
            words = shlex.split(line)
            if words[0] == "torchrun":
                load_config(ROOT / words[words.index("-m") + 2], words[words.index("-m") + 3 :])
            elif words[0] == "kappaface":
                assert words[1:] == [] or words[1] in console.programs(), line
            elif words[0] == "python":
                # Not by find_spec: whoever looks for pip before Python 3.12 has setuptools replaced
                # for the rest of the process, and with it what compiles.
                assert words[2] in ("build", "pip", "pytest"), line
            else:
                assert words[0] in ("make", "docker", "mkdir"), line
                if words[0] == "make":
                    test_what_cannot_be_run_here_names_what_there_is(words)
            files = [word for word in words if re.search(r"^tests$|^docker/|^constraints", word)]
            assert all((ROOT / name).exists() for name in files), line
            assert all(f'"{e}": [' in SETUP for e in re.findall(r"\.\[([\w-]+)\]", line)), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text("utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_every_configuration_tool_and_file_has_its_line():
    for folder, pattern in (("configs", "*.yaml"), ("docker", "*"), ("launch", "*.py")):
        text = (ROOT / folder / "README.md").read_text("utf-8")
        for path in (ROOT / folder).glob(pattern):
            assert path.name in text or path.name == "README.md", path
    text = (ROOT / "tools/README.md").read_text("utf-8")
    missing = [name for name in console.programs() if f"`{name}`" not in text]
    assert not missing
