"""Thousands of damaged files through every reader of data, in processes of their own.

    python -m tests.mutation_run --files 5000

For each kind of file: how many were refused, read as they were, or read as something else, the
most memory and processor time that one took, and how many killed their process. What is read as
something else without a report is counted where the format could tell: what is cut off in every
format, any change of a PNG, and labels that left their pictures.
"""

import argparse
import io
import json
import logging
import os
import pickle
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from kappaface_dist.data.images import decode_picture
from kappaface_dist.data.prepare.drop_list import read_drop_list
from kappaface_dist.data.prepare.landmarks import read_landmarks
from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.data.sources.recordio import RecordReader
from kappaface_dist.evaluation.sets.face_lists import read_faces
from kappaface_dist.evaluation.sets.group_file import read_groups
from kappaface_dist.evaluation.sets.pair_file import read_pairs, write_pairs
from kappaface_dist.evaluation.sets.pair_lists import listed_pairs
from tests.integration.test_mutated_data import KINDS, mutated, payload_of
from tests.unit.data.made_records import jpeg, write_records
from tests.unit.data.sources.test_tar_source import write_tar

SECONDS = 300  # then a child is ended
EACH = 20  # files of one process; where it dies, each of them gets its own
# Where nobody but a reader of the text can tell that its end is missing.
TEXTS = (".names", "landmarks", "list of pairs", "list of groups", "list of classes")
LOGGER = logging.getLogger("kappaface_dist")


class Counting(logging.Handler):
    """How many warnings came."""

    count = 0

    def emit(self, record):
        self.count += 1


WARNINGS = Counting(logging.WARNING)


def in_child(action):
    """(result, signal that killed it, bytes, CPU seconds) of action() in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.alarm(SECONDS)
        LOGGER.handlers, LOGGER.propagate = [WARNINGS], False
        try:
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(action(), pipe)
        except Exception:  # noqa: BLE001 (it is what is looked for)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read()
    _, status, used = os.wait4(child, 0)
    result = pickle.loads(content) if content else None  # noqa: S301 (our own child's)
    ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return result, ended, used.ru_maxrss * 1024, used.ru_utime + used.ru_stime


def read_dataset(path):
    catalog = open_catalog(path)
    found = []
    for i in range(catalog.num_images):
        try:
            pixels = decode_picture(catalog.read(i)).tobytes()
        except (ValueError, OSError) as error:
            pixels = str(error)
        found.append((int(catalog.label_I[i]), pixels))
    return found


def read_photos(path):
    """A photo that cannot be read is named where it is read: a refusal."""
    found = read_dataset(path)
    for _, pixels in found:
        if isinstance(pixels, str):
            raise ValueError(pixels)
    return found


def read_pair_file(path):
    pairs = read_pairs(path)
    payloads = [bytes(payload) for payload in pairs.payloads]
    return [(bool(same), *payloads[2 * i : 2 * i + 2]) for i, same in enumerate(pairs.same_P)]


def table(suffix):
    def make(folder):
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {"image": [jpeg(i, 16) for i in range(12)], "label": [i // 3 for i in range(12)]}
        path = folder / f"train{suffix}"
        if suffix == ".parquet":
            pq.write_table(pa.table(columns), path, row_group_size=5)
        else:
            with (
                pa.OSFile(str(path), "wb") as file,
                pa.ipc.new_stream(file, pa.table(columns).schema) as stream,
            ):
                stream.write_table(pa.table(columns))
        return path, path

    return make


def shard(folder):
    files = [(f"{i}.jpg", jpeg(i, 16)) for i in range(12)]
    files += [(f"{i}.json", json.dumps({"label": i // 3}).encode()) for i in range(12)]
    path = write_tar(folder / "train.tar", files)
    return path, path


def beside(suffix):
    """A file beside a record, damaged in the record's place."""

    def make(folder):
        path = write_records(folder / "train.rec", [i // 3 for i in range(12)], 16)
        open_catalog(path)
        if suffix == ".idx":
            starts = RecordReader(path).offset_R.tolist()
            text = "".join(f"{i}\t{at}\n" for i, at in enumerate(starts))
            path.with_suffix(".idx").write_text(text)
        if suffix == ".names":
            path.with_suffix(".names").write_text("ann\nbob\nzoë\ncy\n")
        place = path if not suffix else path.with_suffix(suffix)
        return path, path.with_name("train.rec.kfindex") if suffix == ".kfindex" else place

    return make


def pair_file(folder):
    path = folder / "set.bin"
    write_pairs(path, [jpeg(i, 16) for i in range(24)], [i % 2 == 0 for i in range(12)])
    return path, path


def picture(kind):
    def make(folder):
        path = folder / "picture"
        path.write_bytes(payload_of(kind))
        return path, path

    return make


def deep_picture(folder):
    grey = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    (folder / "picture").write_bytes(file.getvalue())
    return folder / "picture", folder / "picture"


def landmarks(folder):
    lines = [f"{i}.jpg {' '.join(str(i + k) for k in range(10))}" for i in range(20)]
    (folder / "points.txt").write_text("\n".join(lines) + "\n")
    return folder / "points.txt", folder / "points.txt"


def read_picture(path):
    return decode_picture(path.read_bytes()).tobytes()


def photo_of_a_folder(folder):
    """A folder per person, of which one photo is damaged."""
    for i in range(12):
        place = folder / "people" / f"p{i // 3}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.jpg").write_bytes(jpeg(i, 16))
    return folder / "people", folder / "people" / "p1" / "4.jpg"


def text_file(name, text):
    def make(folder):
        (folder / name).write_text(text)
        return folder / name, folder / name

    return make


PEOPLE = {f"p{k}": [Path(f"p{k}/p{k}_{i:04}.jpg") for i in range(1, 5)] for k in range(8)}
PAIRS = [f"p{k}\t{i}\t{i + 1}" for k in range(8) for i in (1, 2)]
PAIRS += [f"p{k}\t{i}\tp{(k + 1) % 8}\t{i}" for k in range(8) for i in (1, 2)]
FACES = {"path": [f"{i}.jpg" for i in range(20)], "id": [f"p{i // 4}" for i in range(20)]}


def read_list_of_faces(path):
    found = read_faces(path)
    return list(zip(map(str, found.paths), found.names, strict=True))


SOURCES = {
    **{f"picture, {kind}": (picture(kind), read_picture) for kind in KINDS},
    "picture, 16-bit PNG": (deep_picture, read_picture),
    ".rec": (beside(""), read_dataset),
    ".idx": (beside(".idx"), read_dataset),
    ".kfindex": (beside(".kfindex"), read_dataset),
    ".names": (beside(".names"), lambda path: list(open_catalog(path).class_names or [])),
    ".tar": (shard, read_dataset),
    ".parquet": (table(".parquet"), read_dataset),
    ".arrow": (table(".arrow"), read_dataset),
    ".bin": (pair_file, read_pair_file),
    "a photo of a folder": (photo_of_a_folder, read_photos),
    "list of pairs": (
        text_file("pairs.txt", "\n".join(["16", *PAIRS]) + "\n"),
        lambda path: listed_pairs(path, PEOPLE),
    ),
    "list of faces": (text_file("faces.json", json.dumps(FACES)), read_list_of_faces),
    "list of groups": (
        text_file("groups.txt", "".join(f"p{k} g{k % 2}\n" for k in range(8))),
        lambda path: [
            part if isinstance(part, int | list) else part.tolist()
            for part in read_groups(path, sorted(PEOPLE), 30)
        ],
    ),
    "list of classes": (
        text_file("drop.tsv", "".join(f"{k}\tp{k}\n" for k in range(8))),
        read_drop_list,
    ),
    "landmarks": (landmarks, lambda path: [(name, p.tolist()) for name, p in read_landmarks(path)]),
}


def outcome(read, path, original, how, kind):
    """One word, and what no report was made of."""
    try:
        found = read(path)
    except (ValueError, OSError) as error:
        return ("refused" if "\n" not in str(error) else "refused in several lines"), ""
    if found == original:
        return "as it was", ""
    if WARNINGS.count:
        return "something else, and said so", ""
    could_tell = (how == "cut off" and kind not in TEXTS) or kind.endswith("PNG")
    if kind in (".idx", ".kfindex"):
        could_tell = not set(found) <= set(original) or len(found) != len(original)
    return "something else", how if could_tell else ""


def try_all(read, path, target, kept, original, kind, mutations):
    """(outcome, unreported, seconds) of each, in this process."""
    found = []
    for how, damaged in mutations:
        for file in target.parent.iterdir():
            if file.is_file():
                file.unlink()
        for file in kept.iterdir():
            shutil.copy2(file, target.parent)
        target.write_bytes(damaged)
        WARNINGS.count = 0
        started = time.process_time()
        word, silent = outcome(read, path, original, how, kind)
        found.append((word, silent, time.process_time() - started))
    return found


def run(kind, num_files, seed):
    make, read = SOURCES[kind]
    rng = np.random.default_rng(seed)
    counts, silent, killed, most_bytes, most_seconds = Counter(), Counter(), Counter(), 0, 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (path, target), *_ = in_child(lambda: make(folder))
        original, _, base_bytes, _ = in_child(lambda: read(path))
        assert original, kind
        kept = folder / "kept"
        kept.mkdir()
        for file in target.parent.iterdir():
            if file.is_file():
                shutil.copy2(file, kept)
        good = target.read_bytes()
        waiting = [[mutated(good, rng) for _ in range(EACH)] for _ in range(-(-num_files // EACH))]
        while waiting:
            some = waiting.pop()
            found, ended, used_bytes, _ = in_child(
                lambda some=some: try_all(read, path, target, kept, original, kind, some)
            )
            if found is None and len(some) > 1:
                waiting += [[one] for one in some]  # which of them was it?
                continue
            if found is None:
                killed[f"signal {ended}" if ended else "an error that is no refusal"] += 1
                continue
            for word, unreported, seconds in found:
                counts[word] += 1
                silent[unreported] += bool(unreported)
                most_seconds = max(most_seconds, seconds)
            most_bytes = max(most_bytes, used_bytes - base_bytes)
    return {
        "kind": kind,
        "files": sum(counts.values()) + sum(killed.values()),
        **counts,
        "unreported": dict(+silent),
        "killed": dict(killed),
        "most_megabytes": round(most_bytes / 1e6, 1),
        "most_seconds": round(most_seconds, 2),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    each = -(-args.files // len(SOURCES))
    for number, kind in enumerate(SOURCES):
        print(json.dumps(run(kind, each, [args.seed, number])), flush=True)


if __name__ == "__main__":
    main()
