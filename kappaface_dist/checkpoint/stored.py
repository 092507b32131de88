"""The tensors of a checkpoint where they lie in its files, mapped rather than read.

torch.load makes a copy of a whole tensor, of which a rank may want some rows. A mapped one takes no
memory but the system's own cache, and only what is looked at is read.
"""

import io
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

# Of an entry of a zip file: its head's length, and where in it the lengths of name and extra are.
ENTRY_HEAD, ENTRY_LENGTHS = 30, 26


def stored_pieces(
    folder: Path, index: Metadata, name: str
) -> Iterator[tuple[ChunkStorageMetadata, torch.Tensor]]:
    """Every part of a tensor, with its place in the whole; not to be written to.

    Raises:
        ValueError: a file is not what torch.save writes.
    """
    entry = index.state_dict_metadata[name]
    assert isinstance(entry, TensorStorageMetadata)
    for number, chunk in enumerate(entry.chunks):
        yield chunk, stored_piece(folder, index, MetadataIndex(name, chunk.offsets, number))


def stored_piece(folder: Path, index: Metadata, key: MetadataIndex) -> torch.Tensor:
    """One part of a tensor."""
    entry, place = index.state_dict_metadata[key.fqn], index.storage_data[key]
    assert isinstance(entry, TensorStorageMetadata)
    sizes = _sizes(entry.chunks, key)
    dtype = entry.properties.dtype
    path = folder / place.relative_path
    num_bytes = sizes.numel() * dtype.itemsize
    if not num_bytes:
        return torch.empty(sizes, dtype=dtype)
    try:
        start = _start_of_numbers(path, place.offset, place.length, num_bytes)
        raw = np.memmap(path, np.uint8, mode="c", offset=start, shape=(num_bytes,))
    except (zipfile.BadZipFile, struct.error, ValueError, StopIteration) as error:
        raise ValueError(
            f"checkpoint {folder} is damaged: {path.name} does not hold {key.fqn} as expected"
            f" ({type(error).__name__}: {error})"
        ) from error
    return torch.from_numpy(raw).view(dtype).view(sizes)


def _sizes(chunks: list[ChunkStorageMetadata], key: MetadataIndex) -> torch.Size:
    """Of the part that lies at key's offset, which may know its number."""
    if key.index is not None and key.index < len(chunks):
        chunk = chunks[key.index]
        if chunk.offsets == key.offset:
            return chunk.sizes
    return next(chunk.sizes for chunk in chunks if chunk.offsets == key.offset)


class _Slice(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, file: IO[bytes], offset: int, length: int):
        self._file, self._offset, self._length, self._place = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = 0) -> int:
        self._place = (0, self._place, self._length)[whence] + place
        return self._place

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._offset + self._place)
        left = max(self._length - self._place, 0)
        data = self._file.read(min(len(buffer), left))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def _start_of_numbers(path: Path, offset: int, length: int, num_bytes: int) -> int:
    """Where in the file the numbers of a saved tensor begin: torch.save writes a zip, unpacked."""
    with path.open("rb") as file:
        with zipfile.ZipFile(_Slice(file, offset, length)) as archive:
            entry = next(e for e in archive.infolist() if e.filename.endswith("/data/0"))
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != num_bytes:
            raise ValueError(f"{entry.file_size} bytes instead of {num_bytes}")
        file.seek(offset + entry.header_offset + ENTRY_LENGTHS)
        name, extra = struct.unpack("<HH", file.read(4))
    return offset + entry.header_offset + ENTRY_HEAD + name + extra
