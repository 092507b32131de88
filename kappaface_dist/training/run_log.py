"""The log of a run: console, beside the progress bar, and train.log."""

import logging
import sys
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

logger = logging.getLogger("kappaface_dist")

LINE = "%(asctime)s %(levelname)s %(message)s"


class _AboveTheBar(logging.Handler):
    """Prints a line without breaking the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class _File(logging.FileHandler):
    """train.log; where it cannot be written that is said once, and the console goes on alone."""

    def __init__(self, path: Path):
        super().__init__(path, encoding="utf-8")
        self._path, self._broken = path, False

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
        elif not self._broken:
            self._broken = True
            logger.error("%s could not be written: %s", self._path, sys.exc_info()[1])

    def close(self) -> None:
        with suppress(OSError):  # what could not be written was said
            super().close()


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
        handlers.append(_File(folder / "train.log"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(LINE, "%H:%M:%S"))
        logger.addHandler(handler)
