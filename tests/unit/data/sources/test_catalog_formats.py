"""WebDataset shards, Parquet and Arrow files: written here by tarfile and pyarrow, read by us."""

import io
import json
import tarfile
import threading
import tracemalloc

import numpy as np
import pytest
import torch

from kappaface_dist.data.loading.loader import build_loader
from kappaface_dist.data.sources import index_cache
from kappaface_dist.data.sources.catalog import open_catalog
from tests.unit.data.made_records import jpeg

LABELS = [0, 2, 1, 1, 0, 2, 2]


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def shard(path, labels=LABELS, first=0):
    files = []
    for i, label in enumerate(labels):
        files.append((f"{first + i:06}.jpg", jpeg(first + i, 32)))
        text = {"label": label, "other": 1} if i % 2 else None
        if text:
            files.append((f"{first + i:06}.json", json.dumps(text).encode()))
        else:
            files.append((f"{first + i:06}.cls", f"{label}\n".encode()))
    return write_tar(path, files)


def images_of(catalog):
    return [catalog.read(i) for i in range(catalog.num_images)]


def test_webdataset_shards(tmp_path):
    shard(tmp_path / "faces-000.tar")
    shard(tmp_path / "faces-001.tar", [3, 0], first=len(LABELS))
    for train in (tmp_path, str(tmp_path / "faces-*.tar"), str(tmp_path)):  # then from the cache
        catalog = open_catalog(train)
        assert catalog.label_I.tolist() == [*LABELS, 3, 0]
        assert catalog.count_C.tolist() == [3, 2, 3, 1]
        assert images_of(catalog) == [jpeg(i, 32) for i in range(9)]
        assert catalog.where(8).startswith(f"{tmp_path / 'faces-001.tar'} image 1 (byte ")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("1.jpg", b"a")], r"image 1 has no label: add 1\.cls"),
        ([("1.jpg", b"a"), ("1.json", b'{"name": "ann"}')], "image 1 has no label"),
        ([("1.jpg", b"a"), ("1.cls", b"ann")], "not a class number"),
        ([("1.jpg", b"a"), ("1.cls", b"-1")], "not a class number"),
        ([("1.jpg", b"a"), ("1.json", b'{"label": 1.5}')], "not a class number"),
        ([("1.jpg", b"a"), ("1.png", b"a"), ("1.cls", b"0")], "two images named 1"),
        ([("1.txt", b"a")], "no image in it"),
    ],
)
def test_shards_that_are_no_dataset(tmp_path, files, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_catalog(write_tar(tmp_path / "a.tar", files))
    assert "\n" not in str(caught.value)


def test_compressed_and_damaged_shards(tmp_path):
    files = [("1.jpg", jpeg(1, 32)), ("1.cls", b"0")]
    packed = write_tar(tmp_path / "packed.tar", files, "w:gz")
    with pytest.raises(ValueError, match="not a plain"):
        open_catalog(packed)
    whole = write_tar(tmp_path / "whole.tar", [("0.cls", b"0"), ("0.jpg", jpeg(1, 32))])
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole.read_bytes()[:1700])
    with pytest.raises(ValueError, match=r"cut\.tar(: 0.jpg claims .* cut off| is not a plain)"):
        open_catalog(cut)


def sparse_member(name, real, claimed):
    """A member in GNU's old form of sparse files: `real` bytes that stand for `claimed`."""
    info = tarfile.TarInfo(name)
    info.size = real
    info.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[386:398], block[398:410] = b"%011o\0" % 0, b"%011o\0" % real
    block[482:483], block[483:495] = b"\0", b"%011o\0" % claimed
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + b"1".ljust(512, b"\0")


@pytest.mark.parametrize("name", ["0.jpg", "0.cls"])
@pytest.mark.parametrize("kind", ["sparse", "pax sparse", "size"])
def test_a_header_that_claims_gigabytes(tmp_path, name, kind):
    other = {"0.jpg": ("0.cls", b"0"), "0.cls": ("0.jpg", jpeg(1, 32))}[name]
    path = write_tar(tmp_path / "a.tar", [other])
    start = path.read_bytes()[: 512 + (len(other[1]) + 511) // 512 * 512]
    info = tarfile.TarInfo(name)
    info.size = 1
    if kind == "sparse":
        member = sparse_member(name, 1, 8 << 30)
    elif kind == "pax sparse":
        sparse = {"map": "0,1", "size": str(8 << 30), "numblocks": "1"}
        info.pax_headers = {f"GNU.sparse.{key}": value for key, value in sparse.items()}
        member = info.tobuf(tarfile.PAX_FORMAT) + b"1".ljust(512, b"\0")
    else:
        info.size = 8 << 30
        member = info.tobuf(tarfile.GNU_FORMAT) + b"1".ljust(512, b"\0")
    path.write_bytes(start + member + bytes(1024))
    np.unique([0])  # what numpy loads at the first call is not the shard's
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a\.tar") as caught:
        open_catalog(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert peak < 20e6


def test_a_label_of_megabytes(tmp_path):
    files = [("0.jpg", jpeg(1, 32)), ("0.json", b" " * (2 << 20) + b'{"label": 0}')]
    with pytest.raises(ValueError, match=r"0\.json has more than \d+ bytes, which is no label"):
        open_catalog(write_tar(tmp_path / "a.tar", files))


@pytest.mark.parametrize(
    "changes",
    [
        {"start": np.array([0, 2**40])},
        {"bytes": np.array([-5, 5])},
        {"label": np.array([0, 1, 2], np.int32)},
        {"label": np.array([0, 1], np.float64)},
    ],
)
def test_a_false_cache_of_a_shard_is_made_anew(tmp_path, caplog, changes):
    path = shard(tmp_path / "a.tar", [1, 0])
    content = images_of(open_catalog(path))
    fingerprint = index_cache.file_stamp(path)
    cache = tmp_path / "a.tar.kfindex"
    arrays = {n: np.array(a) for n, a in index_cache.read(cache, fingerprint).items()}
    index_cache.write(cache, fingerprint, arrays | changes)
    catalog = open_catalog(path)
    assert catalog.label_I.tolist() == [1, 0]
    assert images_of(catalog) == content
    assert f"the cached index {cache} is made anew" in caplog.text


@pytest.fixture
def table():
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    images = [{"bytes": jpeg(i, 32), "path": f"{i}.jpg"} for i in range(len(LABELS))]
    metadata = {"info": {"features": {"label": {"names": ["ann", "ben", "zoë"]}}}}
    table = pa.table({"image": images, "label": pa.array(LABELS, pa.int64())})
    return table.replace_schema_metadata({"huggingface": json.dumps(metadata)})


def write_table(table, path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=3)
    else:
        opener = pa.ipc.new_file if path.stem == "file" else pa.ipc.new_stream
        with opener(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    return path


@pytest.mark.parametrize("name", ["a.parquet", "stream.arrow", "file.arrow"])
def test_tables(table, tmp_path, name):
    catalog = open_catalog(write_table(table, tmp_path / name))
    assert catalog.label_I.tolist() == LABELS
    assert catalog.class_names == ["ann", "ben", "zoë"]
    assert images_of(catalog) == [jpeg(i, 32) for i in range(len(LABELS))]
    assert catalog.where(3) == f"{tmp_path / name} row 3"
    assert open_catalog(tmp_path).num_images == len(LABELS)  # the folder
    # Bytes without a struct, and other names.
    plain = table.select(["label"]).append_column("jpg", [[jpeg(i, 32) for i in range(7)]])
    plain = plain.rename_columns(["person", "jpg"])
    catalog = open_catalog(write_table(plain, tmp_path / f"plain{name}"))
    assert images_of(catalog) == [jpeg(i, 32) for i in range(len(LABELS))]


def test_many_threads_read_one_parquet_file(table, tmp_path, monkeypatch):
    monkeypatch.setattr("kappaface_dist.data.sources.table_blocks.MAX_KEPT_BYTES", 1)
    catalog = open_catalog(write_table(table, tmp_path / "a.parquet"))
    wrong = []

    def read_all(seed):
        for i in np.random.default_rng(seed).permutation(len(LABELS)):
            if catalog.read(int(i)) != jpeg(int(i), 32):
                wrong.append(i)

    threads = [threading.Thread(target=read_all, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_tables_that_are_no_dataset(table, tmp_path):
    def opened(changed):
        return open_catalog(write_table(changed, tmp_path / "a.parquet"))

    with pytest.raises(ValueError, match="class numbers to 'label'"):
        opened(table.select(["image"]))
    with pytest.raises(ValueError, match="encoded images to 'image'"):
        opened(table.select(["label"]))
    with pytest.raises(ValueError, match="has no row"):
        opened(table.slice(0, 0))
    negative = table.set_column(1, "label", [[0, 1, -1, 0, 0, 0, 0]])
    with pytest.raises(ValueError, match="row 2 has label -1"):
        opened(negative)
    missing = table.set_column(1, "label", [[0, 1, None, 0, 0, 0, 0]])
    with pytest.raises(ValueError, match="1 rows have no label"):
        opened(missing)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match=r"b\.parquet is damaged"):
        open_catalog(tmp_path / "b.parquet")


def test_a_row_without_an_image_is_counted(table, tmp_path):
    images = table.column("image").to_pylist()
    images[2] = {"bytes": None, "path": "2.jpg"}
    catalog = open_catalog(
        write_table(table.set_column(0, "image", [images]), tmp_path / "a.parquet")
    )
    loader = build_loader(catalog, batch_size=7, image_size=32, device=torch.device("cpu"))
    next(loader.batches(0, 1))
    assert loader.num_corrupt == 1
    assert loader.corrupt == [(catalog.where(2), "the row has no image bytes")]
