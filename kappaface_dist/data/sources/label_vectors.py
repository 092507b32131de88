"""All labels of each image, where it has several: clusters as classes, of which it is near some.

MXNet's header holds as many labels as its flag says; every image must have as many. Otherwise the
first alone is an image's class (`catalog.py`).
Shapes: I images of the dataset, L labels of each.
"""

import logging
from dataclasses import replace

import numpy as np

from kappaface_dist.data.sources.base import MAX_CLASSES
from kappaface_dist.data.sources.catalog import Catalog, count_images
from kappaface_dist.data.sources.record import RecordSource

logger = logging.getLogger(__name__)


def with_all_labels(catalog: Catalog, how: str) -> Catalog:
    """The same with label_IL, and with counts of all labels.

    Args:
        how: data.labels, for messages.

    Raises:
        ValueError: the images have one label each, or not equally many, or one that is no class.
    """
    parts: list[np.ndarray] = []
    for source, first in zip(catalog.sources, catalog.first_image, strict=True):
        if not isinstance(source, RecordSource):
            raise ValueError(
                f"data.labels is {how}, and {source.where(0)} is in no record: several labels of an"
                " image are read from .rec files on this machine only, write one"
            )
        found_IL, odd = source.label_vectors()
        expected = parts[0].shape[1] if parts else found_IL.shape[1]
        if odd is not None or found_IL.shape[1] != expected:
            where = source.where(0 if odd is None else odd[0])
            number = found_IL.shape[1] if odd is None else odd[1]
            raise ValueError(
                f"data.labels is {how}, and {where} has {number} labels where those before have"
                f" {expected}: every image must have as many, write the record anew"
            )
        good_IL = (found_IL >= 0) & (found_IL < MAX_CLASSES) & (found_IL == np.floor(found_IL))
        if not good_IL.all():
            i, column = (int(place[0]) for place in np.nonzero(~good_IL))
            raise ValueError(
                f"data.labels is {how}, and label {column + 1} of"
                f" {catalog.where(first + i)} is {found_IL[i, column]:g}: labels are whole numbers"
                " from 0 on"
            )
        parts.append(found_IL.astype(np.int32))
    label_IL = np.concatenate(parts)
    if label_IL.shape[1] == 1:
        raise ValueError(
            f"data.labels is {how}, and the images of {catalog.where(0).split(' record ')[0]} have"
            " one label each: leave data.labels out"
        )
    sorted_IL = np.sort(label_IL, axis=1)
    twice = int((sorted_IL[:, 1:] == sorted_IL[:, :-1]).any(axis=1).sum())
    if twice:
        logger.warning(
            "%d of %d images name a class twice, which counts twice", twice, len(label_IL)
        )
    name = catalog.where(0).split(" record ")[0]
    logger.info("data.labels is %s: %d labels for each image", how, label_IL.shape[1])
    return replace(catalog, label_IL=label_IL, count_C=count_images(label_IL.ravel(), name=name))
