"""Tables whose columns are of other types than Hugging Face's."""

import numpy as np
import pytest

from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.data.sources.table_source import TableSource

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

IMAGES = [bytes([255, 216, number]) + b"\x00\x80\xff" for number in range(6)]
LABELS = [2, 0, 1, 1, 0, 2]
NAMES = ["zoë", "ann", "Bob"]  # in the order of the numbers; sorted: Bob, ann, zoë
BY_NAME = [0, 2, 1, 1, 2, 0]


def write(path, image, label):
    table = pa.table({"image": image, "label": label})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=4)
    else:
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    return path


def images_of(catalog):
    return [catalog.read(i) for i in range(catalog.num_images)]


@pytest.mark.parametrize("end", [".parquet", ".arrow"])
@pytest.mark.parametrize(
    "label",
    [
        pa.array(LABELS, pa.uint8()),
        pa.array(LABELS, pa.float32()),
        pa.array(np.array(LABELS, np.float16)),
        pa.array(LABELS, pa.int64()).dictionary_encode(),
    ],
    ids=lambda label: str(label.type),
)
def test_labels_of_every_kind_of_number(tmp_path, label, end):
    catalog = open_catalog(write(tmp_path / f"a{end}", IMAGES, label))
    assert catalog.label_I.tolist() == LABELS
    assert catalog.label_I.dtype == np.int32
    assert catalog.class_names is None


@pytest.mark.parametrize("end", [".parquet", ".arrow"])
@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_names_as_labels(tmp_path, kind, end):
    texts = [NAMES[label] for label in LABELS]
    if kind == "dictionary":
        label = pa.array(texts).dictionary_encode()
    else:
        label = pa.array(texts, getattr(pa, kind)())
    catalog = open_catalog(write(tmp_path / f"a{end}", IMAGES, label))
    assert catalog.class_names == ["Bob", "ann", "zoë"]
    assert [catalog.class_names[label] for label in catalog.label_I] == texts


def test_names_have_one_number_in_all_files(tmp_path):
    write(tmp_path / "a.parquet", IMAGES[:3], ["ann", "bob", "ann"])
    write(tmp_path / "b.parquet", IMAGES[3:], ["cyd", "bob", "cyd"])
    catalog = open_catalog(tmp_path)
    assert catalog.class_names == ["ann", "bob", "cyd"]
    assert catalog.label_I.tolist() == [0, 1, 0, 2, 1, 2]
    assert catalog.count_C.tolist() == [2, 2, 2]
    write(tmp_path / "c.parquet", IMAGES[:1], [5])
    with pytest.raises(
        ValueError, match=r"a\.parquet row 0 has a name as .*c\.parquet row 0 a number"
    ):
        open_catalog(tmp_path)


@pytest.mark.parametrize("end", [".parquet", ".arrow"])
@pytest.mark.parametrize(
    "image",
    [
        pa.array([list(image) for image in IMAGES], pa.list_(pa.uint8())),
        pa.array([list(image) for image in IMAGES], pa.large_list(pa.uint8())),
        pa.array([np.frombuffer(i, np.int8).tolist() for i in IMAGES], pa.list_(pa.int8())),
        pa.array([list(image) for image in IMAGES], pa.list_(pa.uint8(), 6)),
        pa.array(IMAGES, pa.binary_view()),
        pa.array(IMAGES, pa.large_binary()),
        pa.array(IMAGES, pa.binary(6)),
    ],
    ids=lambda image: str(image.type),
)
def test_images_of_every_kind_of_bytes(tmp_path, image, end):
    catalog = open_catalog(write(tmp_path / f"a{end}", image, LABELS))
    assert images_of(catalog) == IMAGES
    assert [type(payload) for payload in images_of(catalog)] == [bytes] * 6


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (IMAGES, [0.0, 1.5, 1, 0, 0, 0], "row 1 has label 1.5, labels are whole numbers"),
        (IMAGES, [0.0, float("nan"), 1, 0, 0, 0], "row 1 has label nan"),
        (IMAGES, [2.0**31, 1, 1, 0, 0, 0], "row 0 has label 2147483648.0"),
        (IMAGES, [True] * 6, "column label of the type bool, expected class numbers"),
        (IMAGES, [[1]] * 6, "column label of the type list<.*expected class numbers"),
        (["a.jpg"] * 6, LABELS, "column image of the type string, expected encoded images"),
        ([[[1]]] * 6, LABELS, "column image of the type list<.*expected encoded images"),
        (IMAGES, ["ann", None, "b", "b", "b", "b"], "1 rows have no label"),
    ],
)
def test_other_columns_are_refused_in_a_sentence(tmp_path, image, label, message):
    with pytest.raises(ValueError, match=message):
        open_catalog(write(tmp_path / "a.parquet", image, label))


@pytest.mark.parametrize("name", ["plain", "float", "string", "dictionary"])
def test_the_tables_of_the_cases(shared_cases, name):
    source = TableSource(shared_cases / "tables" / f"{name}.parquet")
    assert source.label_I.tolist() == [k // 4 for k in range(40)]
    catalog = open_catalog(shared_cases / "tables" / f"{name}.parquet")
    assert (catalog.num_images, catalog.num_classes) == (40, 10)
    expected = [f"n{k:06}" for k in range(10)] if name in ("string", "dictionary") else None
    assert catalog.class_names == expected
    assert catalog.read(39)[:2] == b"\xff\xd8"


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_flipped_bits_end_in_one_sentence_or_in_what_is_there(tmp_path, suffix):
    """Never in another error, which would end a training, nor in the death of the process."""
    path = tmp_path / f"train{suffix}"
    columns = {
        "image": [b"picture %d" % i for i in range(12)],
        "label": [i // 3 for i in range(12)],
    }
    if suffix == ".parquet":
        pq.write_table(pa.table(columns), path, row_group_size=5)
    else:
        table = pa.table(columns)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    good = path.read_bytes()
    refusals = []
    for at in range(0, len(good), 5):
        damaged = bytearray(good)
        damaged[at] ^= 1 if at % 2 else 8
        path.write_bytes(damaged)
        try:
            source = TableSource(path)
            assert all(len(source.read(i)) < 100 for i in range(len(source.label_I)))
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) > 20
    assert not any("\n" in text for text in refusals)
    assert all(str(path) in text or "row group" in text or "row" in text for text in refusals)
