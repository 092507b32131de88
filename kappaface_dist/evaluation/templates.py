"""Template benchmarks (IJB-B, IJB-C): 1:1 over listed pairs of templates, 1:N over galleries.

Shapes: I images, T templates, P pairs, Q probes, D embedding size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kappaface_dist.data.align import align_face
from kappaface_dist.data.images import decode_picture
from kappaface_dist.data.template_lists import TemplateList, TemplateSet
from kappaface_dist.evaluation.embedding_store import (
    ImageList,
    StoredEmbeddings,
    embed_to_folder,
)
from kappaface_dist.evaluation.identification import closed_set_numbers, open_set_numbers
from kappaface_dist.evaluation.pairs import FALSE_ACCEPT_RATES, rate_name
from kappaface_dist.evaluation.pooling import Pooling, pool_templates
from kappaface_dist.evaluation.protocol import (
    Roc,
    area_under,
    equal_error_rate,
    roc,
    tar_at_far,
)
from kappaface_dist.evaluation.search import search

# Pairs whose cosines are computed at a time; a set has millions.
PAIR_ROWS = 1 << 14


@dataclass(frozen=True)
class TemplateResult:
    """Numbers ready for JSON, and the ROC of the 1:1 pairs (None where there is one kind only)."""

    summary: dict[str, Any]
    curve: Roc | None


def embed_template_images(
    model: nn.Module,
    templates: TemplateSet,
    cache: str | Path,
    *,
    digest: str,
    image_size: int,
    batch_size: int,
    device: torch.device,
    flip: bool = True,
    progress: Callable[[int], object] | None = None,
) -> StoredEmbeddings:
    """Embed all images of a set, aligned by their five points; collective.

    Args:
        cache: folder for the embeddings; those there are taken if weights, lists and images are the
            same by their hashes.
        digest: of the model's weights.

    Raises:
        ValueError: an image is not readable.
    """

    def decode(number: int, payload: bytes) -> np.ndarray:
        return align_face(decode_picture(payload), templates.points_I52[number], image_size)

    images = ImageList(
        count=len(templates.image_names),
        read=lambda number: (templates.folder / templates.image_names[number]).read_bytes(),
        decode=decode,
        where=lambda number: str(templates.folder / templates.image_names[number]),
    )
    settings = {"weights": digest, "image_size": str(image_size), "lists": templates.digest}
    return embed_to_folder(
        model,
        images,
        Path(cache) / f"{templates.name}_{digest[:12]}_{'flip' if flip else 'plain'}",
        settings=settings,
        batch_size=batch_size,
        device=device,
        flip=flip,
        progress=progress,
    )


def evaluate_templates(
    stored: StoredEmbeddings,
    templates: TemplateSet,
    pooling: Pooling,
    *,
    device: torch.device | str = "cpu",
) -> TemplateResult:
    """All numbers of a set. Not collective: the images are the work, this is matrix products.

    1:1: rates of the listed pairs. 1:N: for each gallery all probes searched in it, those of other
    galleries' people being the false alarms; "average" over the galleries; and "joined", all
    galleries as one, as the field's scripts have it: then every probe has a mate.
    """
    number_T, embedding_TD = pool_templates(
        stored.parts(), templates.template_I, templates.media_I, templates.score_I, pooling
    )
    cosine_P = pair_cosines(embedding_TD, np.searchsorted(number_T, templates.pair_P2))
    curve, one_to_one = verification_numbers(cosine_P, templates.same_P)
    summary: dict[str, Any] = {
        "images": len(templates.image_names),
        "templates": len(number_T),
        "1:1": one_to_one,
    }
    if templates.probes is not None:
        summary["1:N"] = identify_templates(
            number_T, embedding_TD, templates.galleries, templates.probes, device=device
        )
    return TemplateResult(summary, curve)


def pair_cosines(embedding_TD: np.ndarray, row_P2: np.ndarray) -> np.ndarray:
    """The cosine of each pair of rows, float32, in bounded memory."""
    cosine_P = np.empty(len(row_P2), dtype=np.float32)
    for first in range(0, len(row_P2), PAIR_ROWS):
        left, right = row_P2[first : first + PAIR_ROWS].T
        cosine_P[first : first + PAIR_ROWS] = np.einsum(
            "pd,pd->p", embedding_TD[left], embedding_TD[right]
        )
    return cosine_P


def verification_numbers(
    cosine_P: np.ndarray, same_P: np.ndarray
) -> tuple[Roc | None, dict[str, Any]]:
    """AUC, EER and TAR at FAR of scored pairs; a rate is None where there are not enough pairs."""
    num_different = int(np.sum(~same_P))
    numbers: dict[str, Any] = {"pairs": len(same_P), "same_pairs": len(same_P) - num_different}
    if not num_different or num_different == len(same_P):
        return None, numbers | {"note": "all pairs are of one kind: no rate can be measured"}
    curve = roc(-cosine_P, same_P)
    rates = {rate_name(far): tar_at_far(curve, num_different, far) for far in FALSE_ACCEPT_RATES}
    missing = [name for name, rate in rates.items() if rate is None]
    note = f"{num_different} different pairs are not enough for FAR {', '.join(missing)}"
    return curve, numbers | {
        "auc": area_under(curve),
        "eer": equal_error_rate(curve),
        "tar_at_far": rates,
        "note": note if missing else "",
    }


def identify_templates(
    number_T: np.ndarray,
    embedding_TD: np.ndarray,
    galleries: dict[str, TemplateList],
    probes: TemplateList,
    *,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """1:N numbers of each gallery, their average, and of all galleries joined into one."""

    def embeddings(templates: TemplateList) -> np.ndarray:
        return embedding_TD[np.searchsorted(number_T, templates.template_T)]

    query_QD = embeddings(probes)
    numbers: dict[str, Any] = {}
    for name, gallery in galleries.items():
        found = search(
            query_QD, probes.subject_T, embeddings(gallery), gallery.subject_T, device=device
        )
        numbers[name] = open_set_numbers(found)
    numbers["average"] = {
        key: {
            name: _mean([numbers[gallery][key][name] for gallery in galleries])
            for name in next(iter(numbers.values()))[key]
        }
        for key in ("rank", "tpir_at_fpir")
    }
    joined = search(
        query_QD,
        probes.subject_T,
        np.concatenate([embeddings(gallery) for gallery in galleries.values()]),
        np.concatenate([gallery.subject_T for gallery in galleries.values()]),
        device=device,
    )
    numbers["joined"] = closed_set_numbers(joined)
    return numbers


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
