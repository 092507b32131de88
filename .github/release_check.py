"""What a release needs, a line each; ends with code 1 if something is missing."""

import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def version() -> str:
    return re.findall(r'__version__ = "(.+)"', text("kappaface_dist/__init__.py"))[0]


def run(*words: str | Path, cwd: Path = ROOT) -> str:
    """What a command prints; RuntimeError with it where the command fails."""
    done = subprocess.run(list(map(str, words)), cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr).strip()[-1500:])
    return done.stdout


def tree_is_clean() -> str:
    return run("git", "status", "--porcelain") and "there are changes without a commit"


def changelog_has_the_version() -> str:
    found = f"## {version()}" in text("CHANGELOG.md")
    return "" if found else f"CHANGELOG.md has no heading '## {version()}' with what is in it"


def citation_has_the_version() -> str:
    found = f"version: {version()}" in text("CITATION.cff")
    return "" if found else f"CITATION.cff names another version than {version()}"


def tag_is_free() -> str:
    return run("git", "tag", "-l", f"v{version()}") and f"v{version()} is tagged already"


def packages_build_and_work() -> str:
    """Source archive, wheel out of it, and the wheel alone in an environment of its own."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        run(sys.executable, "-m", "build", "--outdir", folder / "dist")
        (wheel,) = (folder / "dist").glob("*.whl")
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        run(python, "-m", "pip", "install", "-q", wheel)
        (folder / "empty").mkdir()
        run(python, "-m", "kappaface_dist", "doctor", cwd=folder / "empty")
    return ""


def tests_pass() -> str:
    run(sys.executable, "-m", "pytest", "tests")
    return ""


CHECKS: list[Callable[[], str]] = [
    tree_is_clean,
    changelog_has_the_version,
    citation_has_the_version,
    tag_is_free,
    packages_build_and_work,
    tests_pass,
]


def main(checks: list[Callable[[], str]] = CHECKS) -> None:
    failed = 0
    for check in checks:
        try:
            fault = check()
        except RuntimeError as error:
            fault = str(error)
        print(f"{'MISSING' if fault else 'ok':9}{check.__name__.replace('_', ' ')}", flush=True)
        if fault:
            failed += 1
            print(f"         {fault}", flush=True)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
