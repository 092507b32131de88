"""The index of a checkpoint, `.metadata`, read without trusting it.

torch.distributed.checkpoint keeps there, as a pickle, the name, shape and place of every tensor. A
pickle is a program; this reader answers only the few names that an index needs, and refuses an
index that would lead elsewhere: to files outside its folder, or to entries that are pickles
themselves (torch loads those without a guard).
"""

import pickle
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, ClassVar

import torch
from torch.distributed.checkpoint import filesystem, metadata

from kappaface_dist.restricted_pickle import MALFORMED, Refused

INDEX = ".metadata"
DATA_FILE = re.compile(r"__\d+_\d+\.distcp")
DTYPES = {
    name: dtype for name in dir(torch) if isinstance(dtype := getattr(torch, name), torch.dtype)
}


def _strided(name: Any) -> torch.layout:
    if name != "torch.strided":
        raise Refused(f"it holds a tensor of layout {name!r}")
    return torch.strided


# _MEM_FORMAT_ENCODING and _StorageInfo are private, but they are what torch writes into the file.
ALLOWED: dict[tuple[str, str], Any] = {
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): _strided,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): filesystem._StorageInfo,
    # Where the writer had its folder; nothing is opened by it, and a pure path cannot be.
    ("pathlib", "PosixPath"): PurePosixPath,
    ("pathlib", "WindowsPath"): PureWindowsPath,
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
    **{
        ("torch.distributed.checkpoint.metadata", name): getattr(metadata, name)
        for name in (
            "Metadata",
            "MetadataIndex",
            "TensorStorageMetadata",
            "TensorProperties",
            "ChunkStorageMetadata",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        )
    },
}
# Newer Pythons keep the classes in a module of their own.
ALLOWED["pathlib._local", "PosixPath"] = PurePosixPath


# pickle's Python form: the C form sizes its memo by the largest index that the file names, so four
# damaged bytes take all memory.
class _IndexUnpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise Refused(
                f"its index asks for {module}.{name}, which no checkpoint needs (loading it could"
                " run code)"
            )
        return ALLOWED[module, name]

    def load_build(self) -> None:
        # A state for a class would change it for the whole process; instances are ours to fill.
        if isinstance(self.stack[-2], type) or callable(self.stack[-2]):  # type: ignore[attr-defined]
            raise Refused("its index tries to change a class")
        super().load_build()  # type: ignore[misc]

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: load_build,
    }


def read_metadata(folder: Path) -> metadata.Metadata:
    """The index of a checkpoint.

    Raises:
        ValueError: it is absent, damaged, or asks for more than an index needs; says which.
    """
    path = folder / INDEX
    if not path.is_file():
        raise ValueError(f"{folder} is not a complete checkpoint: it has no {INDEX} file")
    try:
        with path.open("rb") as file:
            index = _IndexUnpickler(file).load()
        _check(index)
    except Refused as refused:
        raise ValueError(f"checkpoint {folder} is refused: {refused}") from refused
    except MALFORMED as error:
        raise ValueError(
            f"checkpoint {folder} is damaged: its {INDEX} cannot be read"
            f" ({type(error).__name__}: {error})"
        ) from error
    return index


def _check(index: Any) -> None:
    """Raise Refused unless the index describes tensors in files of its own folder."""
    if not isinstance(index, metadata.Metadata):
        raise Refused(f"its index is a {type(index).__name__}")
    for name, entry in index.state_dict_metadata.items():
        if not isinstance(entry, metadata.TensorStorageMetadata):
            raise Refused(f"its entry {name} is not a tensor")
    for key, place in index.storage_data.items():
        if not isinstance(place, filesystem._StorageInfo) or not isinstance(
            key, metadata.MetadataIndex
        ):
            raise Refused("its index does not say where the tensors lie")
        if not DATA_FILE.fullmatch(str(place.relative_path)):
            raise Refused(f"its entry {key.fqn} lies in {place.relative_path!r}")
        if getattr(place, "transform_descriptors", None):
            raise Refused(f"its entry {key.fqn} is stored in a transformed way")
