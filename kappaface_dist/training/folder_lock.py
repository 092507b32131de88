"""One run, one folder: a lock that says who uses it, and whose owner shows that it lives.

Whether a process of this machine runs is known at once. Of one elsewhere (another machine of a
network file system, another container) it cannot be known, so the owner touches its lock every few
seconds, and a lock that nobody touches for a while is taken over.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from kappaface_dist.commands import tell_torchrun

logger = logging.getLogger(__name__)
FILE = "run.lock"
BEAT = 5.0  # seconds between two signs of life
PATIENCE = 30.0  # seconds without one, after which an owner elsewhere is gone
ENDING = 12.0  # seconds that a rank takes to see that its torchrun has died, and to end
EXIT_CODE = 70  # EX_SOFTWARE
TRY_AGAIN = 0.2


class FolderLock:
    """Takes a run folder, which is made if it is absent, until the block ends.

    Afterwards a thread shows that this process lives; it ends the process, which would otherwise
    mix its files with those of another run, when the lock is not its own any more.

    Raises:
        RuntimeError: another run uses the folder; or it is gone, and this process is started anew.
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path, *, beat: float = BEAT, patience: float = PATIENCE):
        self._path, self._beat = folder / FILE, beat
        if int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0) and not folder.exists():
            raise RuntimeError(
                f"run folder {folder} is gone, and this run was started again after a fault: put"
                " the folder back, or start the command anew to begin from nothing"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._token = uuid.uuid4().hex
        own = {"host": socket.gethostname(), "pid": os.getpid(), "start": _start(os.getpid())}
        own |= {"since": time.strftime("%Y-%m-%d %H:%M:%S"), "kernel": _kernel()}
        while not self._create({**own, "token": self._token}):
            owner = _read(self._path)
            if _lives(self._path, owner, patience):
                raise RuntimeError(
                    f"another run is using {folder}: {_name(owner)}: end it, or give another"
                    f" run.folder (where that is no run any more, delete {self._path})"
                )
            self._clear(owner)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show_life, name="folder lock", daemon=True)
        self._thread.start()

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if _read(self._path).get("token") == self._token:
            self._path.unlink(missing_ok=True)

    def _create(self, owner: dict[str, Any]) -> bool:
        """Whether the lock was not there, and now is this process's."""
        try:
            # Exclusive on network file systems too (NFS from version 3 on).
            descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(owner, file)
        return True

    def _clear(self, owner: dict[str, Any]) -> None:
        """Take away the lock of an owner that is gone."""
        aside = self._path.with_name(f"{FILE}.{self._token}")
        try:
            self._path.rename(aside)
        except FileNotFoundError:
            return  # another start was quicker
        if _read(aside) == owner:
            logger.warning("%s: %s is gone: the folder is taken over", self._path, _name(owner))
            aside.unlink()
        else:
            # Between reading and renaming another start has taken it over.
            aside.rename(self._path)
            time.sleep(TRY_AGAIN)

    def _show_life(self) -> None:
        while not self._ended.wait(self._beat):
            try:
                token = json.loads(self._path.read_text(encoding="utf-8"))["token"]
                os.utime(self._path)
            except FileNotFoundError:
                self._end(f"{self._path}, the lock of this run, was deleted, or its whole folder")
                return
            except (OSError, ValueError, KeyError, TypeError):
                continue  # a disk that is away for a while; what is written next says so
            if token != self._token:
                owner = _name(_read(self._path))
                self._end(f"{self._path} was taken over by {owner}")
                return

    def _end(self, reason: str) -> None:
        if self._ended.is_set():
            return
        reason = f"{reason}: the run ends, so that no two runs write into one folder"
        logger.error("%s", reason)
        tell_torchrun(reason)
        logging.shutdown()
        os._exit(EXIT_CODE)


def _lives(path: Path, owner: dict[str, Any], patience: float) -> bool:
    """Whether the owner of a lock goes on running; waits for it to end, or for a sign of life."""
    here = owner.get("kernel") == _kernel()
    first = _touched(path)
    deadline = time.monotonic() + (min(patience, ENDING) if here else patience)
    said = False
    while True:
        if here and _start(owner["pid"]) != owner["start"]:
            return False
        if not here and _touched(path) != first:
            return path.exists()
        if time.monotonic() > deadline:
            return here
        if not said:
            what = "its end" if here else "its sign of life"
            # A warning: the log, which lies in the folder, has not begun.
            logger.warning("%s is of %s: waiting for %s", path, _name(owner), what)
            said = True
        time.sleep(min(TRY_AGAIN, patience))


def _touched(path: Path) -> int | None:
    """When a lock was last touched, as a network file system has it: opening asks the server."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _read(path: Path) -> dict[str, Any]:
    """Who owns a lock; nobody known where it is absent, or being written, or damaged."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    known = isinstance(owner, dict) and isinstance(owner.get("pid"), int) and "start" in owner
    return owner if known else {}


def _name(owner: dict[str, Any]) -> str:
    if not owner:
        return "an unknown process"
    return f"process {owner['pid']} of {owner.get('host')}, started {owner.get('since')}"


def _kernel() -> str:
    """Where process numbers mean the same: this start of this kernel, and its own numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode()}"


def _start(pid: int) -> str | None:
    """What tells a process from a later one of the same number; None if there is none."""
    try:
        # After the name, which may hold anything: state is the first field, start the 20th.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, UnicodeDecodeError, IndexError):
        return _start_without_proc(pid)


def _start_without_proc(pid: int) -> str | None:
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "runs"
