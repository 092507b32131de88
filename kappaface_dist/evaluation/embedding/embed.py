"""Embeddings of a list of encoded images, computed by all ranks together.

Shapes: B images of a batch, M images in all, D embedding size, H W image size.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from kappaface_dist.data.images import decode_image
from kappaface_dist.data.normalisation import normalise
from kappaface_dist.parallel import ranks as parallel

T = TypeVar("T")

NUM_DECODERS = 4


def embed_images(
    model: nn.Module,
    payloads: Sequence[bytes],
    *,
    image_size: int,
    batch_size: int,
    device: torch.device,
    describe: Callable[[int], str] = "image {}".format,
    progress: Callable[[int], object] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Unit embeddings of all images, each the normalised sum over the image and its mirror image.

    The ranks share the images by whole batches, so a batch and with it every number is the same
    whatever the number of ranks (with equally many threads each). Images are decoded batch by
    batch, one batch ahead of the model; equal payloads are embedded once. The model is in eval mode
    meanwhile.

    Args:
        model: maps image_B3HW, (pixels - 127.5) / 127.5 of RGB, to embedding_BD; on device.
        batch_size: images per forward pass; each is also passed mirrored.
        describe: names image i in an error.
        progress: called with the number of images that this rank has finished since the last call.

    Returns:
        embedding_MD and length_M, the lengths before they were made 1, float64, on every rank.

    Raises:
        ValueError: an image is not readable (on every rank, whichever found it).
    """
    first_index = {payload: index for index, payload in reversed(list(enumerate(payloads)))}
    distinct = sorted(first_index.values())
    batches = [
        distinct[start : start + batch_size] for start in range(0, len(distinct), batch_size)
    ]

    def decode(index: int) -> np.ndarray:
        try:
            return decode_image(payloads[index], image_size)
        except ValueError as error:
            raise ValueError(f"{describe(index)}: {error}") from error

    def embed_share() -> list[torch.Tensor]:
        embeddings = []
        own = [batches[number] for number in parallel.even_share(len(batches))]
        for pixels in decoded_ahead(own, decode):
            sum_BD = sum_over_flips(model, pixels, device)
            unit_BD = nn.functional.normalize(sum_BD, dim=1)
            embeddings.append(torch.cat([unit_BD, sum_BD.norm(dim=1, keepdim=True)], dim=1))
            if progress is not None:
                progress(len(pixels))
        return embeddings

    with eval_mode(model), torch.no_grad():
        embeddings = parallel.agree(embed_share)
    rows = _gather(embeddings, len(batches), batch_size, len(distinct), device)
    row_of = {payloads[index]: row for row, index in enumerate(distinct)}
    rows = rows[[row_of[payload] for payload in payloads]]
    return np.ascontiguousarray(rows[:, :-1]), rows[:, -1]


def sum_over_flips(
    model: Callable[[torch.Tensor], torch.Tensor],
    pixels: list[np.ndarray],
    device: torch.device,
    *,
    flip: bool = True,
) -> torch.Tensor:
    """float64 [B, D]: the embedding of each image plus, with flip, that of its mirror image."""
    pixels_BHW3 = torch.from_numpy(np.stack(pixels)).to(device)
    image_B3HW = normalise(pixels_BHW3, torch.preserve_format)
    embedding_BD = model(image_B3HW).double()
    return embedding_BD + model(image_B3HW.flip(-1)).double() if flip else embedding_BD


def decoded_ahead(
    batches: Sequence[Sequence[int]], decode: Callable[[int], T]
) -> Iterator[list[T]]:
    """The decoded images of each batch; the next batch is being decoded meanwhile."""
    with ThreadPoolExecutor(NUM_DECODERS) as pool:
        waiting: list[Future[T]] = []
        for number in range(len(batches) + 1):
            decoding = waiting
            if number < len(batches):
                waiting = [pool.submit(decode, index) for index in batches[number]]
            if number:
                yield [future.result() for future in decoding]


def _gather(
    embeddings: list[torch.Tensor],
    num_batches: int,
    batch_size: int,
    num_images: int,
    device: torch.device,
) -> np.ndarray:
    """All ranks' rows in the order of the images; shares are padded to one size on the way."""
    num_ranks = parallel.world_size()
    sizes = parallel.gather_objects([len(rows) for rows in embeddings])
    width = max(parallel.gather_objects(embeddings[0].shape[1] if embeddings else 0))
    most = -(-num_batches // num_ranks) * batch_size
    padded = torch.zeros(most, width, dtype=torch.float64, device=device)
    if embeddings:
        own = torch.cat(embeddings)
        padded[: len(own)] = own
    gathered = parallel.all_gather_rows(padded).cpu().numpy().reshape(num_ranks, most, width)
    rows = np.concatenate([gathered[rank, : sum(sizes[rank])] for rank in range(num_ranks)])
    assert len(rows) == num_images
    return rows


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode, and afterwards each module back in the mode it was in."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
