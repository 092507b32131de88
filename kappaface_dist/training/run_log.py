"""The log of a run: console, beside the progress bar, and train.log."""

import logging
import sys
from pathlib import Path

from tqdm import tqdm

logger = logging.getLogger("kappaface_dist")

LINE = "%(asctime)s %(levelname)s %(message)s"


class _AboveTheBar(logging.Handler):
    """Prints a line without breaking the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def start_logging(folder: Path | None) -> None:
    """Send the package's log to the console (beside the progress bar) and to folder/train.log.

    Args:
        folder: the run folder; None on ranks other than 0, which then only print warnings.
    """
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.INFO if folder else logging.WARNING)
    console: logging.Handler = _AboveTheBar() if folder else logging.StreamHandler()
    handlers = [console]
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(folder / "train.log", encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(LINE, "%H:%M:%S"))
        logger.addHandler(handler)
