"""Embeddings on disk: made by all ranks in parts, kept, and made again only where images changed.

A part is a safetensors file of PART_IMAGES consecutive images: their embeddings and the SHA-256 of
each image's bytes, with the settings they were made under. A part whose settings and hashes still
hold is not made again; so an interrupted job goes on where it was, on any number of ranks.

Shapes: I images of the list, D embedding size, H W image size.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import nn

from kappaface_dist.data.images import decode_image
from kappaface_dist.evaluation.embedding.embed import decoded_ahead, eval_mode, sum_over_flips
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.whole_files import whole_file

PART_IMAGES = 4096


@dataclass(frozen=True)
class ImageList:
    """Images that need not be in memory.

    Attributes:
        read: the encoded bytes of image i.
        decode: (i, bytes) -> uint8 [H, W, 3] of the model's size; ValueError if unreadable.
        where: names image i in a message.
    """

    count: int
    read: Callable[[int], bytes]
    decode: Callable[[int, bytes], np.ndarray]
    where: Callable[[int], str]


def aligned_images(
    count: int, read: Callable[[int], bytes], where: Callable[[int], str], image_size: int
) -> ImageList:
    """A list of pictures of aligned faces, which are only resized; read and where as there."""
    return ImageList(count, read, lambda _, payload: decode_image(payload, image_size), where)


@dataclass(frozen=True)
class StoredEmbeddings:
    """The finished parts of a folder.

    Attributes:
        unreadable: (image, why) of images without an embedding: their rows are NaN.
        num_reused: images whose embeddings were there already.
    """

    folder: Path
    count: int
    unreadable: list[tuple[str, str]]
    num_reused: int

    def parts(self) -> Iterator[tuple[int, np.ndarray]]:
        """(number of the first image, float32 [images, D]) of each part, in order."""
        for first in range(0, self.count, PART_IMAGES):
            with safe_open(_part_file(self.folder, first), framework="np") as file:
                yield first, file.get_tensor("embedding")


def embed_to_folder(
    model: nn.Module,
    images: ImageList,
    folder: str | Path,
    *,
    settings: dict[str, str],
    batch_size: int,
    device: torch.device,
    flip: bool = True,
    keep_unreadable: bool = False,
    progress: Callable[[int], object] | None = None,
) -> StoredEmbeddings:
    """Embed a list of images into folder; collective, and the same for any number of ranks.

    Args:
        model: maps image_B3HW to embedding_BD, on device; put into eval mode meanwhile.
        settings: everything beside the images' bytes that decides the embeddings: the weights'
            digest, the image size, the digest of landmark lists.
        flip: add the embedding of the mirror image.
        keep_unreadable: an unreadable image becomes a row of NaN and is reported, instead of ending
            everything.
        progress: called with the number of images that this rank has finished since the last call.

    Returns:
        embeddings as the model gives them, of any length: unit length is the reader's business.

    Raises:
        ValueError: an image is not readable, and keep_unreadable is not set.
    """
    folder = Path(folder)
    stamp = {**settings, "flip": str(flip), "images": str(images.count)}
    starts = range(0, images.count, PART_IMAGES)[parallel.rank() :: parallel.world_size()]

    def embed_parts() -> tuple[list[tuple[str, str]], int]:
        folder.mkdir(parents=True, exist_ok=True)
        unreadable: list[tuple[str, str]] = []
        num_reused = 0
        for first in starts:
            numbers = range(first, min(first + PART_IMAGES, images.count))
            known = _read_part(_part_file(folder, first), stamp)
            if known is None or not _still_holds(known[0], images, numbers):
                part = _Part(images, numbers, keep_unreadable)
                with eval_mode(model), torch.no_grad():
                    part.embed(model, batch_size, device, flip, progress)
                part.write(_part_file(folder, first), stamp)
                unreadable += part.unreadable
            else:
                num_reused += len(numbers)
                unreadable += known[1]
                if progress is not None:
                    progress(len(numbers))
        return unreadable, num_reused

    results = parallel.gather_objects(parallel.agree(embed_parts))
    unreadable = sorted(item for found, _ in results for item in found)
    return StoredEmbeddings(folder, images.count, unreadable, sum(n for _, n in results))


class _Part:
    """One part while it is made."""

    def __init__(self, images: ImageList, numbers: range, keep_unreadable: bool):
        self.images, self.numbers, self.keep_unreadable = images, numbers, keep_unreadable
        self.digest = np.zeros((len(numbers), 32), dtype=np.uint8)
        self.reason: dict[int, str] = {}
        self.embedding: np.ndarray | None = None

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        return [(self.images.where(i), why) for i, why in sorted(self.reason.items())]

    def embed(
        self,
        model: nn.Module,
        batch_size: int,
        device: torch.device,
        flip: bool,
        progress: Callable[[int], object] | None,
    ) -> None:
        batches = [
            self.numbers[i : i + batch_size] for i in range(0, len(self.numbers), batch_size)
        ]
        rows = []
        blank: np.ndarray | None = None
        for pixels in decoded_ahead(batches, self._decode):
            good = [each for each in pixels if each is not None]
            if blank is None and good:
                blank = np.zeros_like(good[0])
            if not good:
                rows.append(np.full((len(pixels), 0), np.nan, dtype=np.float32))
            else:
                filled = [blank if each is None else each for each in pixels]
                sums = sum_over_flips(model, filled, device, flip=flip)  # type: ignore[arg-type]
                rows.append(sums.float().cpu().numpy())
            if progress is not None:
                progress(len(pixels))
        width = max(block.shape[1] for block in rows)
        # A batch without a readable image knows no width of its own.
        rows = [b if b.shape[1] else np.full((len(b), width), np.nan, np.float32) for b in rows]
        self.embedding = np.concatenate(rows)
        self.embedding[[i - self.numbers.start for i in self.reason]] = np.nan

    def _decode(self, number: int) -> np.ndarray | None:
        try:
            payload = self.images.read(number)
            digest = hashlib.sha256(payload).digest()
            self.digest[number - self.numbers.start] = np.frombuffer(digest, dtype=np.uint8)
            return self.images.decode(number, payload)
        except (ValueError, OSError) as error:
            if not self.keep_unreadable:
                raise ValueError(f"{self.images.where(number)}: {error}") from error
            self.reason[number] = str(error)
            return None

    def write(self, path: Path, stamp: dict[str, str]) -> None:
        assert self.embedding is not None
        metadata = {"settings": json.dumps(stamp), "unreadable": json.dumps(self.unreadable)}
        with whole_file(path) as unfinished:
            save_file({"embedding": self.embedding, "digest": self.digest}, unfinished, metadata)


def _read_part(
    path: Path, stamp: dict[str, str]
) -> tuple[np.ndarray, list[tuple[str, str]]] | None:
    """The hashes and the unreadable images of a part made under these settings; None if not."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("settings") != json.dumps(stamp):
                return None
            unreadable = [(where, why) for where, why in json.loads(metadata["unreadable"])]
            return file.get_tensor("digest"), unreadable
    except SafetensorError:
        return None  # cut off by a full disk: made again


def _still_holds(digest_I32: np.ndarray, images: ImageList, numbers: range) -> bool:
    """Whether every image has the bytes it had; reading them costs little beside a model."""
    for number in numbers:
        try:
            found = hashlib.sha256(images.read(number)).digest()
        except OSError:
            found = bytes(32)
        if digest_I32[number - numbers.start].tobytes() != found:
            return False
    return True


def _part_file(folder: Path, first: int) -> Path:
    return folder / f"part_{first // PART_IMAGES:06d}.safetensors"
