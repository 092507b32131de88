"""summary.json of a run folder, checked where it is read."""

import json
from pathlib import Path
from typing import Any

# What a card or a table reads of a summary.
SUMMARY_KEYS = frozenset(
    ("world_size", "steps", "images_seen", "images_per_second", "loss", "classes", "images")
) | {"verification", "baselines"}


def read_summary(path: Path) -> dict[str, Any]:
    """A summary.json.

    Raises:
        ValueError: it is damaged.
    """
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        missing = SUMMARY_KEYS - summary.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it, and the command that trained writes it again"
        ) from error
    if missing:
        raise ValueError(
            f"{path} is damaged (it has no {', '.join(sorted(missing))}): delete it, and the"
            " command that trained writes it again"
        )
    return summary
