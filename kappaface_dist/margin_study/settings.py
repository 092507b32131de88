"""What the results in a folder are of, so that those of two experiments are never mixed."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kappaface_dist.margin_study.arms import Arm


def check_settings(folder: Path, settings: dict[str, Any], arms: dict[str, Arm]) -> None:
    """Note what the folder's results are of; arms may be added later.

    Raises:
        ValueError: the folder holds results of something else.
    """
    path = folder / "settings.json"
    now = {**settings, "arms": {name: asdict(arm) for name, arm in arms.items()}}
    found: dict[str, Any] = {"arms": {}}
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            other = [key for key in settings if found.get(key) != settings[key]]
            # An earlier version may not have known every property of an arm.
            before = {name: asdict(Arm(**arm)) for name, arm in found["arms"].items()}
            other += [f"arm {k}" for k, arm in now["arms"].items() if before.get(k, arm) != arm]
        except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path} is damaged: choose another --out, or delete it") from error
        if other:
            raise ValueError(
                f"{folder} holds results with another {', '.join(other)}: choose another --out, or"
                " delete it"
            )
    folder.mkdir(parents=True, exist_ok=True)
    now["arms"] = {**found["arms"], **now["arms"]}
    path.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
