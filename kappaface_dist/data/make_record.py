"""Turns a folder of photos, a folder per identity, into a record file."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import simplejpeg

from kappaface_dist.data.images import JPEG_START, decode_image, encode_jpeg
from kappaface_dist.data.recordio import RecordWriter
from kappaface_dist.data.sources import list_identities, list_images

Progress = Callable[[list[tuple[str, Path]]], Iterable[tuple[str, Path]]]


@dataclass(frozen=True)
class RecordReport:
    """What became of the files of a folder.

    Attributes:
        class_names: the identity of each class.
        count_C: images of each class.
        unreadable: files that no image could be made of: (path, why).
        ignored: files that are not images by their names.
    """

    class_names: list[str]
    count_C: list[int]
    unreadable: list[tuple[str, str]]
    ignored: list[str]

    @property
    def num_images(self) -> int:
        """Images written."""
        return sum(self.count_C)


def make_record(
    folder: Path, out: Path, *, image_size: int, progress: Progress = iter
) -> RecordReport:
    """Write out/train.rec, train.idx and property ("classes,height,width") from folder.

    Classes are numbered in the order of the folders' names; folders without a readable image get no
    number. JPEGs that have image_size already are copied as they are, everything else is resized
    and encoded anew (quality 95).

    Args:
        folder: holds a folder of images per identity.
        out: folder for the result, made if absent.
        image_size: height and width of the images written, in pixels.
        progress: wraps the list of files on its way through, for a progress bar.

    Raises:
        ValueError: there is no such folder, no readable image in it, or image_size is below 1.
    """
    if image_size < 1:
        raise ValueError(f"the image size is {image_size} pixels, it must be at least 1")
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: name one that holds a folder per identity")
    files: list[tuple[str, Path]] = []
    ignored: list[str] = []
    for identity in list_identities(folder):
        images, others = list_images(folder / identity)
        files += [(identity, folder / identity / name) for name in images]
        ignored += [str(folder / identity / name) for name in others]
    if not files:
        raise ValueError(
            f"{folder} has no sub-folder with images in it: put each identity's images into a"
            " folder of its own"
        )
    class_names: list[str] = []
    count_C: list[int] = []
    unreadable: list[tuple[str, str]] = []
    with RecordWriter(out / "train") as writer:
        for identity, path in progress(files):
            try:
                payload = prepare(path.read_bytes(), image_size)
            except (ValueError, OSError) as error:
                unreadable.append((str(path), str(error)))
                continue
            if not class_names or class_names[-1] != identity:
                class_names.append(identity)
                count_C.append(0)
            writer.write(len(class_names) - 1, payload)
            count_C[-1] += 1
        if not class_names:
            raise ValueError(
                f"none of the {len(files)} images in {folder} is readable; the first:"
                f" {unreadable[0][0]}: {unreadable[0][1]}"
            )
    text = f"{len(class_names)},{image_size},{image_size}\n"
    (out / "property").write_text(text, encoding="ascii")
    return RecordReport(class_names, count_C, unreadable, ignored)


def prepare(payload: bytes, image_size: int) -> bytes:
    """JPEG bytes of image_size x image_size, the given ones if they are that already.

    Raises:
        ValueError: no image can be decoded from them.
    """
    pixels_HW3 = decode_image(payload, image_size)
    if payload[:2] == JPEG_START:
        height, width, *_ = simplejpeg.decode_jpeg_header(payload)
        if height == width == image_size:
            return payload
    return encode_jpeg(pixels_HW3)
