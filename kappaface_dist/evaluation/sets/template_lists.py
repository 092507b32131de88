"""The list files of a template benchmark (IJB-B, IJB-C), in the layout that the field passes on.

    ROOT/loose_crop/1.jpg ...                      faces with some surroundings
    ROOT/meta/ijbc_face_tid_mid.txt                a line per image: name template media
    ROOT/meta/ijbc_name_5pts_score.txt             name, x and y of five points, detector score
    ROOT/meta/ijbc_template_pair_label.txt         1:1 pairs: template template same(1|0)
    ROOT/meta/ijbc_1N_gallery_G1.csv, ..._G2.csv   1:N: TEMPLATE_ID,SUBJECT_ID,... below a header
    ROOT/meta/ijbc_1N_probe_mixed.csv              (ijbb calls its galleries S1 and S2)

Shapes: I images, P pairs, T templates; five points of x, y in pixels.
"""

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kappaface_dist.text_files import read_lines

SUFFIXES = ("_face_tid_mid.txt", "_name_5pts_score.txt", "_template_pair_label.txt")


@dataclass(frozen=True)
class TemplateList:
    """Templates and the person of each, both int64 [T]: a gallery, or the probes."""

    template_T: np.ndarray
    subject_T: np.ndarray


@dataclass(frozen=True)
class TemplateSet:
    """What the list files say.

    Attributes:
        name: the prefix of the files: ijbb, ijbc, ...
        image_names: files in folder.
        galleries: by name (G1, G2), and the probes; empty and None without the 1:N lists.
        digest: SHA-256 over all list files.
    """

    name: str
    folder: Path
    image_names: list[str]
    template_I: np.ndarray
    media_I: np.ndarray
    points_I52: np.ndarray
    score_I: np.ndarray
    pair_P2: np.ndarray
    same_P: np.ndarray
    galleries: dict[str, TemplateList]
    probes: TemplateList | None
    digest: str


def read_template_set(root: str | Path) -> TemplateSet:
    """Read the list files below root/meta.

    Raises:
        ValueError: a file is missing or malformed, or the files contradict each other.
    """
    root = Path(root)
    meta = root / "meta"
    found = sorted(meta.glob(f"*{SUFFIXES[0]}"))
    if len(found) != 1:
        raise ValueError(
            f"{meta} has {len(found)} files *{SUFFIXES[0]}, expected one: give the folder that"
            " holds meta and loose_crop"
        )
    name = found[0].name.removesuffix(SUFFIXES[0])
    images, points, pairs = (meta / f"{name}{suffix}" for suffix in SUFFIXES)
    names_I, number_I2 = _read_table(images, (1, 2), np.int64)
    named_again, value_IV = _read_table(points, range(1, 12), np.float32)
    if names_I != named_again:
        line = next(
            (i for i, (a, b) in enumerate(zip(names_I, named_again, strict=False)) if a != b),
            min(len(names_I), len(named_again)),
        )
        raise ValueError(
            f"{images.name} and {points.name} name different images at line {line + 1}: both list"
            " the same images in the same order"
        )
    pair_P3 = _read_integers(pairs)
    if not np.isin(pair_P3[:, 2], (0, 1)).all():
        raise ValueError(f"{pairs} has labels other than 0 and 1 in its third column")
    galleries = {
        path.stem.removeprefix(f"{name}_1N_gallery_"): _read_list(path)
        for path in sorted(meta.glob(f"{name}_1N_gallery_*.csv"))
    }
    probe_file = meta / f"{name}_1N_probe_mixed.csv"
    if galleries and not probe_file.is_file():
        raise ValueError(f"{meta} has 1:N galleries but no {probe_file.name}")
    probes = _read_list(probe_file) if galleries else None
    lists = {pairs.name: pair_P3[:, :2]}
    lists |= {f"{name}_1N_gallery_{key}.csv": each.template_T for key, each in galleries.items()}
    if probes is not None:
        lists[probe_file.name] = probes.template_T
    for file, templates in lists.items():
        unknown = np.setdiff1d(templates, number_I2[:, 0])
        if len(unknown):
            raise ValueError(
                f"{file} names {len(unknown)} templates without an image in {images.name}, the"
                f" first is {unknown[0]}"
            )
    digest = hashlib.sha256()
    for path in sorted(meta.glob(f"{name}_*")):
        digest.update(path.name.encode() + b"\n" + path.read_bytes())
    return TemplateSet(
        name=name,
        folder=root / "loose_crop",
        image_names=names_I,
        template_I=number_I2[:, 0],
        media_I=number_I2[:, 1],
        points_I52=value_IV[:, :10].reshape(-1, 5, 2),
        score_I=value_IV[:, 10],
        pair_P2=pair_P3[:, :2],
        same_P=pair_P3[:, 2] == 1,
        galleries=galleries,
        probes=probes,
        digest=digest.hexdigest(),
    )


def _read_table(
    path: Path, columns: tuple[int, ...] | range, dtype: type
) -> tuple[list[str], np.ndarray]:
    """The first column as text and the named ones as numbers, all separated by spaces."""
    names, rows = [], []
    for number, line in enumerate(read_lines(path), start=1):
        cells = line.split()
        try:
            rows.append([dtype(cells[column]) for column in columns])
        except (IndexError, ValueError) as error:
            raise ValueError(
                f"{path} line {number} is {line[:80]!r}, expected a name and {max(columns)} numbers"
            ) from error
        names.append(cells[0])
    if not names:
        raise ValueError(f"{path} is empty")
    return names, np.array(rows, dtype=dtype)


def _read_integers(path: Path) -> np.ndarray:
    """Three whole numbers a line, of millions of lines: numpy's reader, which is in C."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        pair_P3 = np.loadtxt(path, dtype=np.int32, ndmin=2, encoding="utf-8-sig")
    except ValueError as error:
        raise ValueError(f"{path} is not three whole numbers a line: {error}") from error
    if pair_P3.shape[0] == 0 or pair_P3.shape[1] != 3:
        raise ValueError(f"{path} has {pair_P3.shape} rows and columns, expected three columns")
    return pair_P3


def _read_list(path: Path) -> TemplateList:
    """Every template once; its other rows are its further images."""
    subject_of: dict[int, int] = {}
    for number, row in enumerate(csv.reader(read_lines(path)[1:]), start=2):
        try:
            template, subject = int(row[0]), int(row[1])
        except (IndexError, ValueError) as error:
            raise ValueError(
                f"{path} line {number} does not begin with TEMPLATE_ID,SUBJECT_ID"
            ) from error
        if subject_of.setdefault(template, subject) != subject:
            raise ValueError(
                f"{path} line {number} gives template {template} the subject {subject}, an earlier"
                f" line gave it {subject_of[template]}"
            )
    if not subject_of:
        raise ValueError(f"{path} lists no template")
    return TemplateList(np.array(list(subject_of)), np.array(list(subject_of.values())))
