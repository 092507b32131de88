"""Template benchmarks (IJB-B, IJB-C): 1:1 over listed pairs of templates, 1:N over galleries.

Shapes: I images, T templates, P pairs, D embedding size, X anything.
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
from kappaface_dist.evaluation.embedding.store import ImageList, StoredEmbeddings, embed_to_folder
from kappaface_dist.evaluation.one_to_one.bootstrap import Intervals, joined
from kappaface_dist.evaluation.protocol import Roc, curve_numbers
from kappaface_dist.evaluation.resampling import NUM_REPLICATES
from kappaface_dist.evaluation.sets.template_lists import TemplateSet
from kappaface_dist.evaluation.templates.bootstrap import bootstrap_subjects
from kappaface_dist.evaluation.templates.galleries import GalleryResult, search_galleries
from kappaface_dist.evaluation.templates.pooling import Pooling, pool_templates

# Pairs whose cosines are computed at a time; a set has millions.
PAIR_ROWS = 1 << 14


@dataclass(frozen=True)
class TemplateResult:
    """What a set says about a model.

    Attributes:
        summary: the numbers, ready for JSON.
        curve: of the 1:1 pairs; None where they are of one kind only.
        galleries: by name, and "joined"; empty without 1:N lists.
    """

    summary: dict[str, Any]
    cosine_P: np.ndarray
    curve: Roc | None
    intervals: Intervals | None
    galleries: dict[str, GalleryResult]


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
    num_replicates: int = NUM_REPLICATES,
) -> TemplateResult:
    """All numbers of a set. Not collective: the images are the work, this is matrix products.

    1:1: rates of the listed pairs. 1:N: for each gallery all probes searched in it, those of other
    galleries' people being the false alarms; "average" over the galleries; and "joined", all
    galleries as one, as the field's scripts have it: then every probe has a mate.

    Args:
        num_replicates: of the bootstrap over people; 0 for no intervals.
    """
    number_T, embedding_TD = pool_templates(
        stored.parts(), templates.template_I, templates.media_I, templates.score_I, pooling
    )
    row_P2 = np.searchsorted(number_T, templates.pair_P2)
    cosine_P = pair_cosines(embedding_TD, row_P2)
    curve, one_to_one = verification_numbers(cosine_P, templates.same_P)
    intervals = None
    if curve is not None and num_replicates:
        intervals = bootstrap_subjects(
            cosine_P,
            templates.same_P,
            template_identities(number_T, templates).astype(np.int32)[row_P2],
            one_to_one["tar_at_far"],
            num_replicates=num_replicates,
        )
    one_to_one["intervals"] = None if intervals is None else intervals.summary()
    summary: dict[str, Any] = {
        "images": len(templates.image_names),
        "templates": len(number_T),
        "1:1": one_to_one,
    }
    galleries: dict[str, GalleryResult] = {}
    if templates.probes is not None:
        galleries, summary["1:N"] = search_galleries(
            number_T,
            embedding_TD,
            templates.galleries,
            templates.probes,
            device=device,
            num_replicates=num_replicates,
        )
    return TemplateResult(summary, cosine_P, curve, intervals, galleries)


def template_identities(number_T: np.ndarray, templates: TemplateSet) -> np.ndarray:
    """identity_T, numbered from 0 on: alike for templates that the 1:N lists or a pair call alike.

    The official 1:N lists name the subject of every template that is in a pair.
    """
    links = [templates.pair_P2[templates.same_P]]
    listed = [*templates.galleries.values()]
    if templates.probes is not None:
        listed.append(templates.probes)
    if listed:
        subject_X = np.concatenate([each.subject_T for each in listed])
        order_X = np.argsort(subject_X, kind="stable")
        template_X = np.concatenate([each.template_T for each in listed])[order_X]
        alike_X = np.diff(subject_X[order_X]) == 0
        links.append(np.stack([template_X[:-1][alike_X], template_X[1:][alike_X]], axis=1))
    return joined(len(number_T), np.searchsorted(number_T, np.concatenate(links)))


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
    found = curve_numbers(-cosine_P, same_P)
    numbers: dict[str, Any] = {"pairs": len(same_P), "same_pairs": int(same_P.sum())}
    if found.curve is None:
        numbers["note"] = f"{found.note}: no rate can be measured, there is no curve"
        return None, numbers
    numbers |= {"auc": found.auc, "eer": found.eer, "tar_at_far": found.tar_at_far}
    numbers["threshold_at_far"] = {
        rate: None if distance is None else -distance  # the negative cosine
        for rate, distance in found.distance_at_far.items()
    }
    return found.curve, numbers | {"note": found.note}
