"""What a search for overlapping people leaves behind: lists for other programs."""

from pathlib import Path
from typing import Any

import numpy as np

from kappaface_dist.data.prepare.drop_list import write_drop_list
from kappaface_dist.evaluation.one_to_one.bootstrap import joined
from kappaface_dist.evaluation.overlap.matches import Match, Overlap
from kappaface_dist.evaluation.overlap.people import People
from kappaface_dist.text_files import shown
from kappaface_dist.whole_files import write_whole


def write_lists(
    folder: Path, first: People, second: People | None, found: Overlap
) -> dict[str, Path]:
    """Write identity_map.tsv and the lists of classes to leave out; returns what was written.

    The map has a line per match: the class of the first set, the class of the second, then names,
    cosine and chance. Of two sets, the drop lists name all who are in both: one leaves them out
    of one set or the other. Of one set, all but the class with the most images of each person.
    """
    other = second or first
    lines = ["# class of the first set, class of the second, names, cosine, chance\n"]
    for match in found.matches:
        labels = first.label_P[match.first], other.label_P[match.second]
        names = shown(first.name(match.first)), shown(other.name(match.second))
        numbers = f"{match.cosine:.4f}", f"{match.chance:.2e}"
        lines.append("\t".join([*map(str, labels), *names, *numbers]) + "\n")
    written = {"identity_map": folder / "identity_map.tsv"}
    write_whole(written["identity_map"], "".join(lines))
    if second is None:
        written["drop"] = folder / "drop.tsv"
        write_drop_list(written["drop"], "classes that another one has, too", doubled(first, found))
        return written
    written["drop_train"] = folder / "drop_train.tsv"
    people = dict.fromkeys(match.first for match in found.matches)
    whom = ((int(first.label_P[person]), first.name(person)) for person in people)
    write_drop_list(written["drop_train"], "classes of people of the test set", whom)
    if second.pairs is None:
        written["drop_test"] = folder / "drop_test.tsv"
        people = dict.fromkeys(match.second for match in found.matches)
        whom = ((int(second.label_P[person]), second.name(person)) for person in people)
        write_drop_list(written["drop_test"], "classes of people of the training set", whom)
    return written


def doubled(people: People, found: Overlap) -> list[tuple[int, str]]:
    """(label, why) of all classes of a person but the one with the most images."""
    link_L2 = np.array([[m.first, m.second] for m in found.matches], dtype=np.int64).reshape(-1, 2)
    group_P = joined(len(people.label_P), link_L2)
    # Of equal numbers of images the first class stays.
    order_P = np.lexsort((people.label_P, -people.num_images_P, group_P))
    _, begin, size = np.unique(group_P[order_P], return_index=True, return_counts=True)
    return [
        (int(people.label_P[person]), f"as class {people.label_P[order_P[start]]}")
        for start, count in zip(begin[size > 1], size[size > 1], strict=True)
        for person in order_P[start + 1 : start + count].tolist()
    ]


def match_entry(match: Match, first: People, second: People) -> dict[str, Any]:
    """A match, ready for JSON."""
    return {
        "first": int(first.label_P[match.first]),
        "second": int(second.label_P[match.second]),
        "first_name": first.name_P[match.first] if first.name_P else None,
        "second_name": second.name_P[match.second] if second.name_P else None,
        "cosine": match.cosine,
        "chance": match.chance,
        "image_cosine": match.image_cosine,
        "image_share": match.image_share,
        "first_image": first.where(match.first_image),
        "second_image": second.where(match.second_image),
    }
