"""What the command-line programs share: help, one-line errors, progress, reports for machines."""

import argparse
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

GLOO = re.compile(r"gloo/transport/\S+\] ([^\n]*?)\. This is typically")


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows a program's docstring as it is written."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def image_progress() -> Callable[[int, int], None]:
    """A bar, on a terminal, once it is first told (images done, images in all)."""
    bar: tqdm | None = None

    def progress(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, unit=" images", dynamic_ncols=True, disable=None)
        if bar.disable:
            return  # it does not count
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return progress


def run(main: Callable[[], None]) -> None:
    """Call main(); a user's mistake or a fault of the environment ends it with one line and code 1.

    So does Ctrl-C, with the shell's code for it. AssertionError and the like are our mistakes and
    keep their traceback.
    """
    try:
        main()
    except (ValueError, RuntimeError, OSError) as error:
        sentence = f"error: {_in_a_line(error)}"
        tell_torchrun(sentence)
        sys.exit(sentence)
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception:
        tell_torchrun(traceback.format_exc())
        raise


def _in_a_line(error: Exception) -> str:
    """What an error says; where torch's libraries say that a peer is gone, what that means."""
    text = str(error)
    if gone := GLOO.search(text):
        return f"another rank has ended or is out of reach ({gone[1]}): its node's log says why"
    # Those of torch's C++ go on with a stack.
    return text.partition("\nException raised from")[0]


def tell_torchrun(reason: str) -> None:
    """Leave why this process ends where torchrun, if it runs it, looks for the reason.

    torchrun's own report comes last on the console, and ends with it.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is None:
        return
    # The form of torch.distributed.elastic's error files, which it reads as it likes to write them.
    extra = {"py_callstack": reason, "timestamp": str(int(time.time()))}
    # Whole, since torchrun, which may kill this process meanwhile, ends at half a file.
    with suppress(OSError):  # a full disk may be the very reason
        _write_whole(Path(path), json.dumps({"message": {"message": reason, "extraInfo": extra}}))


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes started here never hear of Ctrl-C, which reaches a whole terminal's group.

    Their parent answers for them. A process inherits what is ignored, from its first line on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may choose
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def end_with_parent() -> None:
    """Called by a process that `multiprocessing` has started: end when who started it has ended.

    However that happened: a pool's workers would finish what they have, and then wait for ever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "nobody has started this process"

    def end() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end, name="end_with_parent", daemon=True).start()


def write_json(target: str | None, report: dict[str, Any]) -> None:
    """Write report as JSON to the file target, to standard output for "-", nowhere for None."""
    if target is None:
        return
    text = json.dumps(report, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        path = Path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # /dev/null, a pipe
            path.write_text(text, encoding="utf-8")
            return
        _write_whole(path, text)


def _write_whole(path: Path, text: str) -> None:
    """Whole or not at all: who reads it must not meet a half."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
