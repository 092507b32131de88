"""What we write is read back by MXNet 1.9.1; `make test-mxnet` makes its environment."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from kappaface_dist.data.prepare.convert import convert
from kappaface_dist.data.prepare.make_record import make_record
from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.data.sources.recordio import RecordWriter
from kappaface_dist.made_up_faces.dataset import write_faces
from tests.commands import ROOT
from tests.unit.data.made_records import jpeg

PYTHON = Path(os.environ.get("MXNET_PYTHON", ROOT / ".venv-mxnet" / "bin" / "python"))

pytestmark = pytest.mark.skipif(
    not PYTHON.is_file(), reason=f"there is no MXNet: `make test-mxnet` makes {PYTHON}"
)


def read_by_mxnet(prefix):
    """[(key, labels, SHA-256)] of the records, as MXNet sees them."""
    done = subprocess.run(
        [PYTHON, ROOT / "tests" / "mxnet_reader.py", prefix],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [(key, labels, digest) for key, _, labels, digest in json.loads(done.stdout)]


def digest_of(payload):
    return hashlib.sha256(payload).hexdigest()


def expected_of(catalog):
    return [
        (i, [float(catalog.label_I[i])], digest_of(catalog.read(i)))
        for i in range(catalog.num_images)
    ]


def test_awkward_payloads(tmp_path):
    magic = b"\x0a\x23\xd7\xce"
    payloads = [b"", b"a", magic, magic * 3, b"abcd" + magic + b"efg", b"abc" + magic, jpeg(1)]
    with RecordWriter(tmp_path / "train") as writer:
        for i, payload in enumerate(payloads):
            writer.write(2**24 - i, payload)
    assert read_by_mxnet(tmp_path / "train") == [
        (i, [float(2**24 - i)], digest_of(payload)) for i, payload in enumerate(payloads)
    ]


def test_what_the_tools_write(tmp_path):
    folder = tmp_path / "photos"
    for i in range(9):
        (folder / f"p{i // 3}").mkdir(parents=True, exist_ok=True)
        (folder / f"p{i // 3}" / f"{i}.jpg").write_bytes(jpeg(i, 48 if i % 2 else 32))
    made = make_record(folder, tmp_path / "made", image_size=32, shards=2)
    for record in made.records:
        assert read_by_mxnet(record.with_suffix("")) == expected_of(open_catalog(record))
    copied = convert(open_catalog(str(tmp_path / "made" / "*.rec")), tmp_path / "copy.rec")
    assert copied.num_images == 9
    assert read_by_mxnet(tmp_path / "copy") == expected_of(open_catalog(tmp_path / "copy.rec"))
    write_faces(
        tmp_path / "faces", num_identities=4, num_unseen=4, seed=1, image_size=32, processes=1
    )
    faces = open_catalog(tmp_path / "faces" / "train.rec")
    assert read_by_mxnet(tmp_path / "faces" / "train") == expected_of(faces)
