"""A file in object storage as a source of images, brought into the cache when it is read.

Shapes: I images of a file.
"""

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from kappaface_dist.data.sources import index_cache
from kappaface_dist.data.sources.base import LeftOut, Source
from kappaface_dist.data.sources.class_names import read_class_names
from kappaface_dist.data.sources.remote_cache import RemoteCache
from kappaface_dist.data.sources.remote_store import RemoteFile

HELD = ".kfheld2"  # the first had no names
LAYOUT = {"label": "<i4", "left_out": "|u1", "names": "|u1"}
Opener = Callable[[Path], Source]


class RemoteSource:
    """The images of one file, which is in the cache when one of them is read.

    Raises:
        ValueError: the file is damaged, or not at its address.
        RuntimeError: it cannot be brought.
    """

    def __init__(self, file: RemoteFile, shelf: "Shelf"):
        self._file, self._shelf = file, shelf
        place = shelf.cache.place(file)
        fingerprint = f"{file.version}:{file.num_bytes}"
        shelf.cache.bring_beside(file)
        held = index_cache.recall(place, fingerprint, HELD)
        if held is None:
            with shelf.cache.kept(file) as path:
                source = shelf.opener(path)
                left_out = json.dumps(asdict(getattr(source, "left_out", LeftOut()))).encode()
                names = json.dumps(getattr(source, "name_pairs", [])).encode()
                held = {
                    "label": np.array(source.label_I),
                    "left_out": np.frombuffer(left_out, np.uint8),
                    "names": np.frombuffer(names, np.uint8),
                }
            index_cache.keep(place, fingerprint, held, HELD)
        index_cache.check_layout(held, LAYOUT)
        # A copy: hundreds of thousands of mapped files are more than a process may have.
        self.label_I = np.array(held["label"])
        found = json.loads(held["left_out"].tobytes())
        self.left_out = LeftOut(found["counts"], [(where, why) for where, why in found["listed"]])
        self.name_pairs = [(label, name) for label, name in json.loads(held["names"].tobytes())]

    @property
    def class_names(self) -> Sequence[str] | None:
        """From the file of names beside it, where there is one."""
        return read_class_names(self._shelf.cache.place(self._file))

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image; ValueError if they are damaged.

        Raises:
            RuntimeError: the file cannot be brought; not an image's fault, so no other takes its
                place.
        """
        return self._shelf.take(self._file, self.label_I).read(index)

    def where(self, index: int) -> str:
        """The address, and the number of the image in the file."""
        return f"{self._file} image {index}"


class Shelf:
    """The files that are open, those not used for longest closed where there are too many.

    Args:
        opener: opens a file in the cache.
        max_bytes: of open files; what is open cannot make room for others.
        max_files: that are open at once.
    """

    def __init__(self, cache: RemoteCache, opener: Opener, *, max_bytes: int, max_files: int):
        self.cache, self.opener = cache, opener
        self._max_bytes, self._max_files = max_bytes, max_files
        self._open: OrderedDict[str, tuple[Source, int, int]] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()
        self._opening: dict[str, threading.Lock] = {}

    def take(self, file: RemoteFile, label_I: np.ndarray) -> Source:
        """The file's source; opened, and brought, where it is not open.

        Raises:
            RuntimeError: it cannot be brought, or holds other labels than before.
        """
        found = self._found(file)
        if found is not None:
            return found
        with self._lock:
            opening = self._opening.setdefault(file.url, threading.Lock())
        with opening:
            found = self._found(file)
            return found if found is not None else self._opened(file, label_I)

    def _found(self, file: RemoteFile) -> Source | None:
        with self._lock:
            if file.url not in self._open:
                return None
            self._open.move_to_end(file.url)
            return self._open[file.url][0]

    def _opened(self, file: RemoteFile, label_I: np.ndarray) -> Source:
        size = file.num_bytes or 0
        self._close_down_to(self._max_bytes - size, self._max_files - 1)
        try:
            pin = self.cache.pin(file)
            source = self.opener(self.cache.place(file))
        except ValueError as error:
            raise RuntimeError(str(error)) from error
        if not np.array_equal(source.label_I, label_I):
            os.close(pin)
            raise RuntimeError(f"{file} in the cache holds other labels than before: start again")
        with self._lock:
            self._open[file.url] = (source, pin, size)
            self._num_bytes += size
            self._opening.pop(file.url, None)
        return source

    def _close_down_to(self, num_bytes: int, num_files: int) -> None:
        with self._lock:
            while self._open and (self._num_bytes > num_bytes or len(self._open) > num_files):
                # A thread that reads from it now keeps it mapped until it has read.
                _, (_, pin, size) = self._open.popitem(last=False)
                os.close(pin)
                self._num_bytes -= size
