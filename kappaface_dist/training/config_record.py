"""config.yaml of a run folder: what the run is trained with, and what was changed in it, and when.

A change is a comment at the top, so the file still is a configuration; it is never asked for
anything but its own text.
"""

import logging
import time
from pathlib import Path

from kappaface_dist.config.file import load_config, to_dict, to_yaml
from kappaface_dist.config.keys import Config
from kappaface_dist.training.problem import changed, flat, with_margin_defaults
from kappaface_dist.whole_files import whole_file

logger = logging.getLogger(__name__)
FILE = "config.yaml"
MARK = "# changed "


def record_config(folder: Path, config: Config, step: int) -> None:
    """Write folder/config.yaml, whole, with the changes since the last start on top of it.

    A damaged one is set aside as config.yaml.damaged, and said.

    Args:
        step: from which this start goes on.
    """
    path = folder / FILE
    config = with_margin_defaults(config)
    history: list[str] = []
    if path.exists():
        try:
            before = with_margin_defaults(load_config(path))
            history = [
                line
                for line in path.read_text(encoding="utf-8").splitlines()
                if line.startswith(MARK)
            ]
        except (ValueError, OSError) as error:
            aside = path.replace(path.with_name(f"{FILE}.damaged"))
            logger.warning(
                "%s cannot be read (%s): it is kept as %s, and written anew", path, error, aside
            )
        else:
            when = time.strftime("%Y-%m-%d %H:%M:%S")
            changes = changed(flat(to_dict(before)), flat(to_dict(config))).values()
            history += [f"{MARK}{when}, at step {step}: {text}" for text in changes]
    with whole_file(path) as unfinished:
        text = "".join(f"{line}\n" for line in history)
        unfinished.write_text(text + to_yaml(config), encoding="utf-8")
