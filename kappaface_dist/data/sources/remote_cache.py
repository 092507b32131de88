"""The cache on this machine of files in object storage, shared by all processes of it.

A file is brought whole, by one process, while the others wait for it. Beside `name` lie what is
small and stays: `name.kfversion` (which version it is of), its index and its list of labels. The
files that nobody has open and that were used longest ago make room for others. Locks are flock's:
they end with the process that holds them.
"""

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from kappaface_dist.data.sources.remote_store import CacheSettings, RemoteFile, download, place_of
from kappaface_dist.whole_files import whole_file, write_whole

logger = logging.getLogger(__name__)

VERSION, BRINGING = ".kfversion", ".kfbringing"
COUNTED = (".rec", ".tar", ".idx", BRINGING)
ROOM = 0.95  # of the size stays when room is made, so that it need not be made for each file
TRIES = 5
GIGABYTE = 10**9


class RemoteCache:
    """Brings files, and keeps the cache within its size.

    Raises:
        RuntimeError: the folder cannot be written.
    """

    def __init__(self, settings: CacheSettings):
        default = os.environ.get("KAPPAFACE_CACHE") or Path.home() / ".cache" / "kappaface_dist"
        self.folder = Path(settings.folder or Path(default) / "remote")
        self.max_bytes = int(settings.gigabytes * GIGABYTE)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RuntimeError(
                f"data.cache {self.folder} cannot be made ({error}): name a folder that can"
            ) from error

    def place(self, file: RemoteFile) -> Path:
        """Where a file lies in the cache, by its address."""
        return self.folder / place_of(file.url)

    @contextlib.contextmanager
    def kept(self, file: RemoteFile) -> Iterator[Path]:
        """The file in the cache, which stays there until the block ends."""
        pin = self.pin(file)
        try:
            yield self.place(file)
        finally:
            os.close(pin)

    def pin(self, file: RemoteFile) -> int:
        """Bring a file where it is not there; it stays until the descriptor given is closed.

        Raises:
            ValueError: it is not at its address any more.
            RuntimeError: it cannot be brought, or there is no room for it.
        """
        for _ in range(TRIES):
            pin = self._pin(file)
            if pin is not None:
                return pin
            self._bring(file)
        raise RuntimeError(
            f"{file} was brought {TRIES} times, and gone before it was read: another run uses the"
            f" cache {self.folder}: name another in data.cache, or raise data.cache_gigabytes"
        )

    def bring_beside(self, file: RemoteFile) -> None:
        """Bring the small files that belong to one; remove the index that it has no longer."""
        for other in file.beside:
            if not self._present(other, self.place(other)):
                self._bring(other)
        place = self.place(file)
        if place.suffix == ".rec" and not any(f.name.endswith(".idx") for f in file.beside):
            _forget(place.with_suffix(".idx"))

    def _pin(self, file: RemoteFile) -> int | None:
        path = self.place(file)
        try:
            pin = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        fcntl.flock(pin, fcntl.LOCK_SH)
        found = os.fstat(pin)
        if found.st_nlink and self._present(file, path):
            # Used now; its own time belongs to its version, as the indices know it.
            with contextlib.suppress(PermissionError):  # another user's
                os.utime(pin, ns=(time.time_ns(), found.st_mtime_ns))
            return pin
        os.close(pin)
        return None

    def _present(self, file: RemoteFile, path: Path) -> bool:
        try:
            known = path.with_name(path.name + VERSION).read_text(encoding="utf-8")
            size = path.stat().st_size
        except OSError:
            return False
        return known == file.version and file.num_bytes in (None, size)

    def _bring(self, file: RemoteFile) -> None:
        path = self.place(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        stamp = path.with_name(path.name + VERSION)
        with _alone(path, file.num_bytes or 0):
            if self._present(file, path):
                return  # another process has brought it meanwhile
            self._make_room(file)
            logger.debug("bringing %s", file)
            with whole_file(path) as unfinished:
                download(file, unfinished)
                stamp.unlink(missing_ok=True)
                seconds = int(sha256(file.version.encode()).hexdigest()[:7], 16)
                os.utime(unfinished, ns=(time.time_ns(), seconds * 10**9))
            write_whole(stamp, file.version)
            self.bring_beside(file)

    def _make_room(self, file: RemoteFile) -> None:
        """Count a file, whose place is marked already, and remove others if that is too much."""
        with (self.folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            counter = self.folder / "bytes"
            try:
                total = int(counter.read_text()) + (file.num_bytes or 0)
            except (OSError, ValueError):
                total = self.max_bytes + 1  # not known: counted
            if total > self.max_bytes:
                total = self._evict()
            if total > self.max_bytes:
                logger.warning(
                    "the cache %s has %.3g GB for now, more than data.cache_gigabytes, which is %g:"
                    " so much is in use by this and other runs",
                    *(self.folder, total / GIGABYTE, self.max_bytes / GIGABYTE),
                )
            write_whole(counter, str(total))

    def _evict(self) -> int:
        """Remove what was used longest ago and nobody has open; the bytes that are there then."""
        total, old = 0, []
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = Path(folder, name)
                if not name.endswith(COUNTED) or (name.endswith(BRINGING) and _abandoned(path)):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    found = path.stat()
                    size = found.st_size
                    total += size
                    if path.suffix in (".rec", ".tar"):
                        old.append((found.st_atime_ns, size, path))
        if total > self.max_bytes:
            for _, size, path in sorted(old):
                if total <= ROOM * self.max_bytes:
                    break
                if _removed(path):
                    total -= size
        return total


@contextlib.contextmanager
def _alone(path: Path, num_bytes: int) -> Iterator[None]:
    """No other process or thread brings path meanwhile, and its bytes are counted from now on."""
    mark = path.with_name(path.name + BRINGING)
    while True:
        lock = os.open(mark, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if os.stat(mark).st_ino == os.fstat(lock).st_ino:
                break
        except FileNotFoundError:
            pass
        os.close(lock)  # whoever held it before has removed it
    try:
        os.ftruncate(lock, num_bytes)  # holes: it takes no room itself
        yield
    finally:
        mark.unlink(missing_ok=True)
        os.close(lock)


def _abandoned(mark: Path) -> bool:
    """Whether the process that brought a file is dead; what it left is removed."""
    try:
        lock = os.open(mark, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(mark).st_ino != os.fstat(lock).st_ino:
            return False  # removed, and made anew by another
    except OSError:
        return False
    else:
        path = mark.with_name(mark.name.removesuffix(BRINGING))
        path.with_name(f"{path.name}.part").unlink(missing_ok=True)
        mark.unlink(missing_ok=True)
        return True
    finally:
        os.close(lock)


def _removed(path: Path) -> bool:
    """Remove a file of the cache, unless somebody has it open."""
    try:
        held = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        _forget(path)
        if path.suffix == ".rec":
            _forget(path.with_suffix(".idx"))
        return True
    finally:
        os.close(held)


def _forget(path: Path) -> None:
    path.with_name(path.name + VERSION).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
