"""What setup.py puts into a package that is installed without its source tree."""

from tests.commands import ROOT, python

NOT_PACKAGED = (".md", ".pyc")  # for readers of the source


def files(folder):
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder) for path in found if path.suffix not in NOT_PACKAGED}


def test_pages_are_packaged_with_the_modules(tmp_path):
    done = python("setup.py", "-q", "build_py", "--build-lib", tmp_path)
    assert done.returncode == 0, done.stderr
    expected = files(ROOT / "kappaface_dist")
    assert {"pairs.html", "report.css", "page.py"} <= {path.name for path in expected}
    assert files(tmp_path / "kappaface_dist") == expected
