"""Files changed at random: never a crash, and no changed picture or label without a report.

What no format can tell is left out: one flipped bit in the pixels of a file without checksums.
"""

import io
import logging
import resource

import numpy as np
import pytest
from PIL import Image

from kappaface_dist.data.images import decode_picture
from kappaface_dist.data.sources.catalog import open_catalog
from tests.unit.data.made_records import jpeg, record

KINDS = {
    "JPEG": {"quality": 90},
    "progressive": {"quality": 90, "progressive": True},
    "PNG": {},
    "BMP": {},
    "TIFF": {"compression": "tiff_deflate"},
    "WEBP": {},
    "PPM": {},
    "GIF": {},
}
MAX_BYTES = 500e6
HOW = ("flip", "replace", "cut out", "double", "cut off", "header")


def payload_of(kind):
    exif = Image.Exif()
    exif[0x112] = 6
    picture = Image.open(io.BytesIO(jpeg(5, 64))).resize((64, 48), Image.Resampling.BILINEAR)
    options = KINDS[kind] | ({} if kind in ("BMP", "PPM", "GIF") else {"exif": exif})
    file = io.BytesIO()
    picture.save(file, "JPEG" if kind == "progressive" else kind, **options)
    return file.getvalue()


def mutated(payload, rng):
    """(how, bytes): a bit flipped, bytes replaced, a piece cut out or doubled, the end cut off."""
    damaged = bytearray(payload)
    how = HOW[int(rng.integers(6))]
    at = int(rng.integers(len(payload)))
    end = min(len(payload), at + int(rng.integers(1, 64)))
    if how == "flip":
        damaged[at] ^= 1 << int(rng.integers(8))
    elif how == "replace":
        damaged[at:end] = rng.integers(0, 256, end - at, dtype=np.uint8).tobytes()
    elif how == "cut out":
        del damaged[at:end]
    elif how == "double":
        damaged[at:at] = damaged[at:end]
    elif how == "cut off":
        del damaged[at:]
    else:  # sizes and counts are where bombs are made
        damaged[int(rng.integers(min(64, len(payload))))] = int(rng.choice([0, 1, 127, 128, 255]))
    return how, bytes(damaged)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of tags that were damaged
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_pictures(kind):
    payload = payload_of(kind)
    original = decode_picture(payload)
    rng = np.random.default_rng(sorted(KINDS).index(kind))
    # What is cut off is found in every format, and any change where there are checksums.
    found_out = {"cut off"} if kind != "PNG" else {*HOW}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusals = []
    for _ in range(250):
        how, damaged = mutated(payload, rng)
        found, refusal = tried(lambda damaged=damaged: decode_picture(damaged))
        if found is None:
            refusals.append(refusal)
            continue
        assert found.dtype == np.uint8
        assert found.shape[2:] == (3,)
        if how in found_out:
            np.testing.assert_array_equal(found, original)
    assert len(refusals) > 25
    assert not any("\n" in refusal for refusal in refusals)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < MAX_BYTES


def tried(action):
    """(result, None), or (None, the message of the refusal)."""
    try:
        return action(), None
    except ValueError as error:
        return None, str(error)


def expected_of(catalog):
    return [(int(catalog.label_I[i]), catalog.read(i)) for i in range(catalog.num_images)]


@pytest.mark.parametrize("suffix", [".kfindex", ".idx"])
def test_mutated_indexes_beside_a_record(tmp_path, caplog, suffix):
    """Whatever they hold, each label stays with its picture, or there is a report."""
    contents = [record(i // 3, jpeg(i, 16), i) for i in range(12)]
    starts = np.cumsum([0, *map(len, contents)])
    path = tmp_path / "train.rec"
    path.write_bytes(b"".join(contents))
    lines = "".join(f"{key}\t{at}\n" for key, at in enumerate(starts[:-1]))
    path.with_suffix(".idx").write_text(lines)
    original = expected_of(open_catalog(path))
    place = path.with_suffix(".idx") if suffix == ".idx" else tmp_path / f"train.rec{suffix}"
    good = place.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        _, damaged = mutated(good, rng)
        place.write_bytes(damaged)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found, refusal = tried(lambda: expected_of(open_catalog(path)))
        if suffix == ".kfindex":
            assert found == original
        elif found is None:
            assert "train." in refusal
        else:
            assert set(found) <= set(original)
            assert len(found) == len(original) or "not in train.idx" in caplog.text
