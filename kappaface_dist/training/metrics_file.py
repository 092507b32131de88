"""metrics.jsonl of a run folder: a line of numbers for each time that the run reported."""

import json
import logging
import shutil
from pathlib import Path

from kappaface_dist.whole_files import whole_file

logger = logging.getLogger("kappaface_dist")


def keep_steps_before(path: Path, first_step: int) -> None:
    """Drop the lines of metrics.jsonl from first_step on, and a last line cut off in the middle.

    A damaged file is set aside, and what can be read of it is kept.
    """
    if not path.exists():
        return
    kept, damaged = _readable(path)
    if damaged:
        aside = path.with_name(f"{path.name}.damaged")
        shutil.copyfile(path, aside)
        logger.warning("%s: %s; the file is kept as %s", path, damaged, aside.name)
    with whole_file(path) as unfinished:
        lines = (json.dumps(line) + "\n" for line in kept if line["step"] <= first_step)
        unfinished.write_text("".join(lines), encoding="utf-8")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl; a last line cut off by a crash is left out.

    Lines that are damaged are left out too, with a warning.
    """
    if not path.exists():
        return []
    lines, damaged = _readable(path)
    if damaged:
        logger.warning("%s: %s", path, damaged)
    return lines


def _readable(path: Path) -> tuple[list[dict[str, float]], str]:
    """The lines that can be read, and what is wrong with the others, if anything is."""
    found, wrong = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            numbers = json.loads(line)
        except ValueError:  # of the text, or of its encoding
            numbers = None
        if isinstance(numbers, dict) and isinstance(numbers.get("step"), int):
            found.append(numbers)
        else:
            wrong.append(number)
    more = f", the first of them line {wrong[0]}" if wrong else ""
    return found, f"{len(wrong)} lines are damaged and left out{more}" if wrong else ""
