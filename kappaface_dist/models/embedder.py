"""Use a model: load an export, embed aligned faces, compare two.

    from kappaface_dist.embedder import load_embedder

    embedder = load_embedder("backbone.onnx")             # or .safetensors, a checkpoint, a run
    first, second = embedder.embed(["a.jpg", "b.jpg"])    # float32 [2, D], unit length
    cosine = embedder.compare(first, second)              # 1 for equal, about 0 for others
    print(cosine >= embedder.threshold(1e-3))             # one person, at a false accept rate

Faces must be aligned as in training; `kappaface_dist.data.align.align_face` does it, given the five
points of a detector.

Shapes: B images, D embedding size, H W image size.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kappaface_dist.data.images import decode_image
from kappaface_dist.evaluation.embedding.embed import sum_over_flips
from kappaface_dist.evaluation.protocol import rate_name
from kappaface_dist.models.metadata import read_thresholds
from kappaface_dist.models.saved_model import SavedModel, learnt, open_model

# A path, the bytes of an encoded picture, a PIL image, or pixels uint8 [H, W, 3], RGB.
Picture = str | os.PathLike[str] | bytes | np.ndarray | Image.Image


@dataclass(frozen=True)
class Embedder:
    """A loaded model.

    Attributes:
        run: float32 [B, 3, H, W] -> [B, D].
        image_size: H = W that run expects, in pixels.
        embedding_size: D.
        thresholds: by set and false accept rate, the cosine from which on two faces are one
            person's; empty where the model was not evaluated.
    """

    run: Callable[[np.ndarray], np.ndarray]
    image_size: int
    embedding_size: int
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def embed(
        self, pictures: Picture | Sequence[Picture], *, batch_size: int = 64, flip: bool = True
    ) -> np.ndarray:
        """Unit embeddings of aligned faces, float32 [len(pictures), D]; [D] for one picture.

        Args:
            pictures: one or many, as paths, encoded bytes, PIL images, or pixels; resized where
                they have another size. An array of four dimensions is many.
            batch_size: pictures per pass through the network.
            flip: add the mirror image's embedding, as the evaluation does.

        Raises:
            ValueError: a picture is not readable, or is no RGB picture.
            OSError: a file cannot be read.
        """
        if isinstance(pictures, (str, os.PathLike, bytes, Image.Image)) or (
            isinstance(pictures, np.ndarray) and pictures.ndim != 4
        ):
            one: list[Picture] = [pictures]
            return self.embed(one, batch_size=batch_size, flip=flip)[0]
        rows = [np.zeros((0, self.embedding_size), dtype=np.float32)]
        for first in range(0, len(pictures), batch_size):
            pixels = [self.pixels(each) for each in pictures[first : first + batch_size]]
            embedding_BD = sum_over_flips(self._run, pixels, torch.device("cpu"), flip=flip).numpy()
            embedding_BD /= np.maximum(np.linalg.norm(embedding_BD, axis=1, keepdims=True), 1e-12)
            rows.append(embedding_BD.astype(np.float32))
        return np.concatenate(rows)

    def compare(self, first_D: np.ndarray, second_D: np.ndarray) -> float:
        """Cosine of two embeddings: 1 for the same direction."""
        product = float(np.dot(first_D, second_D))
        return product / float(np.linalg.norm(first_D) * np.linalg.norm(second_D))

    def threshold(self, far: float, name: str | None = None) -> float:
        """The cosine from which on two faces are taken for one person's.

        Args:
            far: the share of pairs of different people that may be taken for one, such as 1e-3.
            name: the set on which it was measured; without it, the strictest of all sets.

        Raises:
            ValueError: no set has a threshold for this rate.
        """
        rate = rate_name(far)
        found = {
            each: rates[rate]
            for each, rates in self.thresholds.items()
            if rate in rates and name in (None, each) and math.isclose(far, float(rate))
        }
        if not found:
            known = "; ".join(f"{each}: {', '.join(r)}" for each, r in self.thresholds.items())
            raise ValueError(
                f"there is no threshold for FAR {far:g}{f' of {name}' if name else ''}, the model"
                f" has {known or 'none'}: evaluate it on a set with at least {math.ceil(1 / far)}"
                " different pairs, and export it with the results"
            )
        return max(found.values())

    def _run(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.run(np.ascontiguousarray(image_B3HW.numpy())))

    def pixels(self, picture: Picture) -> np.ndarray:
        """uint8 [H, W, 3] of the model's size, RGB; ValueError if the picture is none."""
        if isinstance(picture, Image.Image):
            picture = np.asarray(picture.convert("RGB"))
        if isinstance(picture, np.ndarray):
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
                raise ValueError(
                    f"a picture is an array of {picture.dtype} {picture.shape}, expected uint8"
                    " [height, width, 3], RGB"
                )
            if picture.shape[:2] == (self.image_size, self.image_size):
                return picture
            size = (self.image_size, self.image_size)
            return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
        if isinstance(picture, bytes):
            return decode_image(picture, self.image_size)
        try:
            return decode_image(Path(picture).read_bytes(), self.image_size)
        except ValueError as error:
            raise ValueError(f"{picture}: {error}") from error


def load_embedder(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Embedder:
    """Load an exported model for use.

    Args:
        path: backbone.safetensors, .onnx or .pt2 of tools/export.py, the folder of those, a
            checkpoint or a run folder.
        device: of PyTorch; onnxruntime uses the providers that it was installed with, and .pt2
            programs the CPU.

    Raises:
        ValueError: the file is no such model.
        RuntimeError: an .onnx file, and onnxruntime is not installed.
        OSError: the file cannot be read.
    """
    return embedder_of(open_model(Path(path)), device)


def embedder_of(model: SavedModel, device: torch.device | str = "cpu") -> Embedder:
    """An opened model, for use on a device."""
    network = model.network.to(device)

    def run(image_B3HW: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(image_B3HW).to(device)).float().cpu().numpy()

    thresholds = read_thresholds(learnt(model))
    return Embedder(run, model.settings.image_size, model.settings.embedding_size, thresholds)
