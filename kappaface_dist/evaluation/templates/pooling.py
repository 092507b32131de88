"""From the embeddings of images to one per template.

Shapes: I images, T templates, M media (a still, or the frames of one video), D embedding size.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pooling:
    """How the images of a template become one embedding; the defaults are the field's.

    Attributes:
        use_norm: an image counts as long as its embedding is, which grows with its quality; else
            all are brought to unit length first.
        use_detector_score: an image counts by the detector's confidence in it.
        average_media: the frames of a video are averaged before they are added to the others; else
            every frame counts as a still does.
    """

    use_norm: bool = True
    use_detector_score: bool = True
    average_media: bool = True


def pool_templates(
    parts: Iterable[tuple[int, np.ndarray]],
    template_I: np.ndarray,
    media_I: np.ndarray,
    score_I: np.ndarray,
    pooling: Pooling,
) -> tuple[np.ndarray, np.ndarray]:
    """Unit embeddings of all templates.

        template = unit( sum over its media of mean over the medium's images of v_i )
        v_i = embedding_i (or unit(embedding_i)) times (the detector's score_i, or 1)

    as the field's IJB evaluation has it (Whitelam et al., "IARPA Janus Benchmark-B", 2017, describe
    templates and media). Holds one part of the images at a time.

    Args:
        parts: (number of the first image, embedding_ID) of consecutive images.

    Returns:
        template numbers [T], ascending, and embedding_TD, float32.

    Raises:
        ValueError: an image's embedding is zero or not finite.
    """
    number_T, group_T = np.unique(template_I, return_inverse=True)
    # A medium belongs to its template: two templates may number theirs alike.
    if pooling.average_media:
        key_I = np.stack([group_T, np.unique(media_I, return_inverse=True)[1]], axis=1)
        key_M2, group_I = np.unique(key_I, axis=0, return_inverse=True)
        group_I, template_M = group_I.ravel(), key_M2[:, 0]
    else:
        group_I, template_M = group_T, np.arange(len(number_T))
    sum_MD: np.ndarray | None = None
    for first, embedding_ID in parts:
        part = slice(first, first + len(embedding_ID))
        norm_I = np.linalg.norm(embedding_ID, axis=1)
        bad = np.flatnonzero(~(np.isfinite(norm_I) & (norm_I > 0)))
        if len(bad):
            raise ValueError(
                f"the embedding of image {first + bad[0]} has the length {norm_I[bad[0]]}, which"
                " cannot be pooled: has the model's training diverged?"
            )
        weight_I = np.ones_like(norm_I) if pooling.use_norm else 1 / norm_I
        if pooling.use_detector_score:
            weight_I = weight_I * score_I[part]
        if sum_MD is None:
            sum_MD = np.zeros((len(template_M), embedding_ID.shape[1]), dtype=np.float32)
        np.add.at(sum_MD, group_I[part], embedding_ID * weight_I[:, None].astype(np.float32))
    assert sum_MD is not None
    if pooling.average_media:
        sum_MD /= np.bincount(group_I, minlength=len(sum_MD))[:, None].astype(np.float32)
    embedding_TD = np.zeros((len(number_T), sum_MD.shape[1]), dtype=np.float32)
    np.add.at(embedding_TD, template_M, sum_MD)
    embedding_TD /= np.maximum(np.linalg.norm(embedding_TD, axis=1, keepdims=True), 1e-12)
    return number_T, embedding_TD
