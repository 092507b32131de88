"""What the command-line programs share: one-line errors and reports for machines."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run(main: Callable[[], None]) -> None:
    """Call main(); a user's mistake or a fault of the environment ends it with one line and code 1.

    AssertionError and the like are our mistakes and keep their traceback.
    """
    try:
        main()
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")


def write_json(target: str | None, report: dict[str, Any]) -> None:
    """Write report as JSON to the file target, to standard output for "-", nowhere for None."""
    if target is None:
        return
    text = json.dumps(report, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(target).write_text(text, encoding="utf-8")
