"""The package as others get it: from a source archive a wheel, used in an empty folder."""

import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import kappaface_dist
from tests.commands import ENVIRONMENT, ROOT

NOT_PACKAGED = (".md", ".pyc")  # for readers of the source
MAKE_SDIST = ["setup.py", "-q", "egg_info", "--egg-base", "{0}", "sdist", "-d", "{0}"]
MAKE_WHEEL = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def python(*words, cwd, path=""):
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env={**ENVIRONMENT, "PYTHONPATH": str(path), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def files(folder):
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder) for path in found if path.suffix not in NOT_PACKAGED}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The unpacked source archive."""
    folder = tmp_path_factory.mktemp("sdist")
    python(*(word.format(folder) for word in MAKE_SDIST), cwd=ROOT)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder / "out", filter="data")
    return folder / "out" / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def site(source, tmp_path_factory):
    """A wheel made from the source archive alone, unpacked as pip does it."""
    folder = tmp_path_factory.mktemp("wheel")
    python("-c", MAKE_WHEEL, folder, cwd=source)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(folder / "site")
    return folder / "site"


def test_the_source_archive_holds_what_a_clone_has(source):
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no clone: git has no list of its files")
    tracked = {Path(line) for line in listed.stdout.splitlines() if (ROOT / line).exists()}
    missing = {p for p in tracked if not (source / p).exists()}
    assert {str(path) for path in missing} <= {".gitignore"}


def test_the_wheel_holds_the_package_and_the_folders_beside_it(site):
    expected = files(ROOT / "kappaface_dist")
    assert {"pairs.html", "report.css", "page.py"} <= {path.name for path in expected}
    for folder in ("configs", "launch", "tools"):
        expected |= {folder / path for path in files(ROOT / folder)}
    assert files(site / "kappaface_dist") == expected
    tops = {path.name for path in site.iterdir()}
    assert tops == {"kappaface_dist", f"kappaface_dist-{kappaface_dist.__version__}.dist-info"}


def test_its_metadata_say_what_it_is(site):
    (info,) = site.glob("*.dist-info")
    about = Parser().parsestr((info / "METADATA").read_text(encoding="utf-8"))
    assert about["Version"] == kappaface_dist.__version__
    assert about["Requires-Python"] == ">=3.11"
    kinds = about.get_all("Classifier")
    assert {f"Programming Language :: Python :: 3.{n}" for n in (11, 12, 13)} <= set(kinds)
    assert "kappaface = kappaface_dist.console:main" in (info / "entry_points.txt").read_text()
    assert about.get_payload().startswith("# kappaface_dist")


def test_the_picture_of_the_layers_is_of_this_code():
    done = subprocess.run(
        [sys.executable, ".github/draw_layers.py", "--check"],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_it_trains_in_an_empty_folder(site, tmp_path):
    """By the README's commands, without the source tree: the module's name and the command."""
    listed = python("-m", "kappaface_dist", cwd=tmp_path, path=site).stdout
    assert "kappaface_dist " + kappaface_dist.__version__ in listed
    assert "  make-faces " in listed
    assert list(tmp_path.iterdir()) == []
    made = ["make-faces", "data/faces", "--identities", "6", "--unseen-identities", "20"]
    python("-m", "kappaface_dist", *made, cwd=tmp_path, path=site)
    small = ["run.steps=2", "data.batch_size=8", "data.image_size=32", "optimizer.warmup_epochs=0"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    module = [*launcher, "-m", "kappaface_dist.train", "configs/quickstart.yaml", *small]
    done = python(*module, cwd=tmp_path, path=site)
    own = site / "kappaface_dist" / "configs" / "quickstart.yaml"
    assert f"configs/quickstart.yaml is not here: the package's own is taken, {own}" in done.stderr
    assert (tmp_path / "runs/quickstart/export/backbone.safetensors").is_file()
    assert not os.path.exists(site / "runs")
