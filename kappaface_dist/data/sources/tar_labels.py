"""The label of one image of a WebDataset shard, and perhaps who that is, from a .cls or .json."""

import codecs
import json

from kappaface_dist.data.sources.base import MAX_CLASSES

LABELS = frozenset((".cls", ".json"))
MAX_LABEL_BYTES = 1 << 20  # a .json may hold more than the label
NAME_KEYS = ("identity", "person", "class_name", "label_name", "name")  # the first that is text


def read_label(content: bytes, where: str, *, of_json: bool) -> tuple[int | None, str | None]:
    """The class number, None for a .json without one; and the name that a .json has beside it.

    Raises:
        ValueError: it holds no class number, or more bytes than a label has.
    """
    if len(content) > MAX_LABEL_BYTES:
        raise ValueError(
            f"{where} has more than {MAX_LABEL_BYTES} bytes, which is no label: write it anew"
        )
    text = content.removeprefix(codecs.BOM_UTF8)
    name = None
    try:
        value = json.loads(text) if of_json else int(text)
        if isinstance(value, dict):
            texts = (value.get(key) for key in NAME_KEYS)
            name = next((text for text in texts if isinstance(text, str) and text), None)
            value = value.get("label", value.get("cls"))
            if value is None:
                return None, None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is int and 0 <= value < MAX_CLASSES:
            return value, name
    except (ValueError, RecursionError):
        pass
    raise ValueError(
        f"{where} holds {content[:40]!r}, not a class number: labels are whole numbers from 0 on"
    )
