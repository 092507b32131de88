"""Several datasets as one, in which who is in two of them is one class.

The images of one stand after another's, and the classes are numbered as if somebody had written
all into one record: the first dataset's keep their numbers, those of the others that the maps do
not name go on behind. So nothing else knows that it was several.
Shapes: I images of all, X classes of all before any are joined.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from kappaface_dist.data.sources.base import Source
from kappaface_dist.data.sources.catalog import Catalog, count_images
from kappaface_dist.data.sources.class_map import Side, read_class_map

logger = logging.getLogger(__name__)
Map = tuple[str, str, str]  # path, whose classes the first column has, whose the second


def merge_catalogs(parts: Mapping[str, Catalog], maps: Sequence[Map]) -> Catalog:
    """One dataset of several by name, and say how many classes were joined; one stays as it is.

    Raises:
        ValueError: a map cannot be read, names a class that is not there or without images, or all
            maps together make two classes of one dataset one person.
    """
    if len(parts) == 1 and not maps:
        return next(iter(parts.values()))
    number_X = _numbers(parts, maps)
    ends = list(accumulate(part.num_classes for part in parts.values()))
    own_numbers = dict(zip(parts, np.split(number_X, ends[:-1]), strict=True))
    labels = [own_numbers[name][part.labels] for name, part in parts.items()]
    if len({label.shape[1:] for label in labels}) > 1:
        listed = ", ".join(f"{n} {p.labels.shape[1]}" for n, p in parts.items())
        raise ValueError(f"data.merge takes datasets with equally many labels an image: {listed}")
    label = np.concatenate(labels).astype(np.int32)
    label_I = label if label.ndim == 1 else np.ascontiguousarray(label[:, 0])
    sources: list[Source] = []
    first_image: list[int] = []
    first = 0
    for part in parts.values():
        sources += part.sources
        first_image += [first + own for own in part.first_image]
        first += part.num_images
    stops = [*first_image[1:], first]
    for source, start, stop in zip(sources, first_image, stops, strict=True):
        source.label_I = label_I[start:stop]  # once is enough
    count_C = count_images(label.ravel(), name=f"what data.merge makes of {', '.join(parts)}")
    # The labels of each are not kept twice.
    slim = {name: replace(part, label_I=np.empty(0, np.int32)) for name, part in parts.items()}
    return Catalog(
        tuple(sources),
        tuple(first_image),
        label_I,
        count_C,
        tuple(file for part in parts.values() for file in part.parts),
        label_IL=label if label.ndim == 2 else None,
        merged=_joined(slim, own_numbers, len(count_C)),
        names=lambda: _names(slim, own_numbers),
    )


def _numbers(parts: Mapping[str, Catalog], maps: Sequence[Map]) -> np.ndarray:
    """The class in the merged dataset of each class [X] of all datasets in their order."""
    sizes = {name: part.num_classes for name, part in parts.items()}
    start = dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))
    # A class that was joined to another one, the lower of the two.
    joined_to: dict[int, int] = {}

    def lowest(node: int) -> int:
        while node in joined_to:
            node = joined_to[node]
        return node

    for path, first, second in maps:
        sides = [Side(f"class {{}} of {name}", sizes[name]) for name in (first, second)]
        first_C = read_class_map(path, *sides)
        for other in np.flatnonzero(first_C >= 0).tolist():
            pair = {first: int(first_C[other]), second: other}
            for name, label in pair.items():
                if not parts[name].count_C[label]:
                    raise ValueError(
                        f"{path} names class {label} of {name}, which has no images: is it the map"
                        f" of {first} and {second}?"
                    )
            low, high = sorted(lowest(start[name] + label) for name, label in pair.items())
            if low != high:
                joined_to[high] = low
    lowest_of = {node: lowest(node) for node in joined_to}
    _check_one_each(lowest_of, start)
    number_X = np.ones(sum(sizes.values()), dtype=np.int64)
    number_X[list(lowest_of)] = 0
    number_X = number_X.cumsum() - 1
    number_X[list(lowest_of)] = number_X[list(lowest_of.values())]
    return number_X


def _check_one_each(lowest_of: Mapping[int, int], start: Mapping[str, int]) -> None:
    """ValueError where a person would be two classes of one dataset, by way of others."""
    seen: dict[tuple[int, str], int] = {}
    for node in sorted({*lowest_of, *lowest_of.values()}):
        name = [name for name, first in start.items() if first <= node][-1]
        person = lowest_of.get(node, node), name
        if person in seen:
            pair = seen[person] - start[name], node - start[name]
            raise ValueError(
                f"the maps of data.merge together make classes {pair[0]} and {pair[1]} of"
                f" {name} one person: correct the line that is wrong, or join them there first"
                " (convert_record.py --clean)"
            )
        seen[person] = node


def _joined(
    parts: Mapping[str, Catalog], own_numbers: Mapping[str, np.ndarray], num_classes: int
) -> dict[str, dict[str, int]]:
    """Of each dataset: classes and images, and how many of them are classes of one before it."""
    taken = np.zeros(_num_numbers(own_numbers), dtype=bool)
    found: dict[str, dict[str, int]] = {}
    for name, number_C in own_numbers.items():
        part, joined_C = parts[name], taken[number_C]
        taken[number_C] = True
        num_images = int(part.count_C.sum())
        found[name] = {
            "classes": part.num_classes,
            "images": num_images,
            "joined_classes": int(joined_C.sum()),
            "joined_images": int(part.count_C[joined_C].sum()),
        }
        if len(found) > 1:
            level = logging.INFO if joined_C.any() else logging.WARNING
            logger.log(
                level,
                "data.merge: %d of %d classes of %s, with %d of %d images, are classes of %s",
                *(found[name]["joined_classes"], part.num_classes, name),
                *(found[name]["joined_images"], num_images),
                ", ".join(list(found)[:-1]),
            )
    logger.info("data.merge: %s are one dataset of %d classes", ", ".join(parts), num_classes)
    return found


def _num_numbers(own_numbers: Mapping[str, np.ndarray]) -> int:
    return 1 + max(int(number_C.max()) for number_C in own_numbers.values())


def _names(parts: Mapping[str, Catalog], own_numbers: Mapping[str, np.ndarray]) -> list[str] | None:
    """By class, what the first dataset that has it calls it; None where one has no names."""
    names = [""] * _num_numbers(own_numbers)
    for name in reversed(list(parts)):
        own = parts[name].class_names
        if own is None:
            return None
        for number, text in zip(own_numbers[name].tolist(), own, strict=False):
            names[number] = text
    return names
