"""Use a model: load an export, embed aligned faces, compare two.

    from kappaface_dist.embedder import load_embedder

    embedder = load_embedder("backbone.onnx")             # or .safetensors, a checkpoint, a run
    first, second = embedder.embed(["a.jpg", "b.jpg"])    # float32 [2, D], unit length
    print(embedder.compare(first, second))                # cosine: 1 for equal, about 0 for others

Faces must be aligned as in training; `kappaface_dist.data.align.align_face` does it, given the five
points of a detector.

Shapes: B images, D embedding size, H W image size.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kappaface_dist.data.images import decode_image
from kappaface_dist.evaluation.embedding.embed import sum_over_flips
from kappaface_dist.models.onnx_export import import_runtime
from kappaface_dist.models.saved_model import open_model

# A path, the bytes of an encoded picture, or pixels uint8 [H, W, 3], RGB.
Picture = str | os.PathLike[str] | bytes | np.ndarray


@dataclass(frozen=True)
class Embedder:
    """A loaded model.

    Attributes:
        run: float32 [B, 3, H, W] -> [B, D].
        image_size: H = W that run expects, in pixels.
        embedding_size: D.
    """

    run: Callable[[np.ndarray], np.ndarray]
    image_size: int
    embedding_size: int

    def embed(
        self, pictures: Sequence[Picture], *, batch_size: int = 64, flip: bool = True
    ) -> np.ndarray:
        """Unit embeddings of aligned faces, float32 [len(pictures), D].

        Args:
            pictures: paths, encoded bytes, or pixels; resized where they have another size.
            batch_size: pictures per pass through the network.
            flip: add the mirror image's embedding, as the evaluation does.

        Raises:
            ValueError: a picture is not readable, or is no RGB picture.
            OSError: a file cannot be read.
        """
        rows = [np.zeros((0, self.embedding_size), dtype=np.float32)]
        for first in range(0, len(pictures), batch_size):
            pixels = [self._pixels(each) for each in pictures[first : first + batch_size]]
            embedding_BD = sum_over_flips(self._run, pixels, torch.device("cpu"), flip=flip).numpy()
            embedding_BD /= np.maximum(np.linalg.norm(embedding_BD, axis=1, keepdims=True), 1e-12)
            rows.append(embedding_BD.astype(np.float32))
        return np.concatenate(rows)

    def compare(self, first_D: np.ndarray, second_D: np.ndarray) -> float:
        """Cosine of two embeddings: 1 for the same direction."""
        product = float(np.dot(first_D, second_D))
        return product / float(np.linalg.norm(first_D) * np.linalg.norm(second_D))

    def _run(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.run(np.ascontiguousarray(image_B3HW.numpy())))

    def _pixels(self, picture: Picture) -> np.ndarray:
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
        path: backbone.safetensors or .onnx of tools/export.py, a checkpoint or a run folder.
        device: of PyTorch; onnxruntime uses the providers that it was installed with.

    Raises:
        ValueError: the file is no such model.
        RuntimeError: an .onnx file, and onnxruntime is not installed.
        OSError: the file cannot be read.
    """
    if Path(path).suffix == ".onnx":
        return _onnx_embedder(Path(path))
    model = open_model(Path(path))
    network = model.network.to(device)

    def run(image_B3HW: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(image_B3HW).to(device)).float().cpu().numpy()

    return Embedder(run, model.settings.image_size, model.settings.embedding_size)


def _onnx_embedder(path: Path) -> Embedder:
    runtime = import_runtime()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file, expected an exported backbone.onnx")
    try:
        session = runtime.InferenceSession(str(path), providers=runtime.get_available_providers())
        facts = session.get_modelmeta().custom_metadata_map
        image_size, embedding_size = int(facts["image_size"]), int(facts["embedding_size"])
    except KeyError as error:
        raise ValueError(
            f"{path} has no {error} in its metadata, expected a model of tools/export.py"
        ) from error
    except Exception as error:  # onnxruntime's own errors derive from nothing narrower
        raise ValueError(f"{path} is not a readable ONNX model: {error}") from error
    return Embedder(
        lambda image: session.run(None, {"image": image})[0], image_size, embedding_size
    )
