"""Pictures in every form decode to what a viewer shows; what cannot be right is refused."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from kappaface_dist.data import images
from kappaface_dist.data.images import check_jpeg, decode_image, decode_picture
from tests.unit.data.made_records import jpeg


def picture(width=48, height=32):
    """No two corners alike."""
    row, column = np.mgrid[:height, :width]
    planes = [row * 255 // height, column * 255 // width, (row + 2 * column) % 256]
    return Image.fromarray(np.stack(planes, axis=2).astype(np.uint8))


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_a_picture_is_turned_as_its_exif_says(kind, options, orientation):
    payload = encoded(picture(), kind, exif=turned(orientation), **options)
    oracle = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(payload))).convert("RGB"))
    found = decode_picture(payload)
    assert found.shape == ((32, 48, 3) if orientation < 5 else (48, 32, 3))
    assert np.abs(found.astype(int) - oracle).max() <= 2


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_and_shrunk_pictures_are_turned_too(kind, orientation):
    grey = picture(480, 320).convert("L")
    payload = encoded(grey, kind, exif=turned(orientation))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(payload))).convert("RGB")
    oracle = np.asarray(upright.resize((40, 40), Image.Resampling.BILINEAR))
    assert np.abs(decode_image(payload, 40).astype(int) - oracle).mean() < 2


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_orientations_that_there_are_not(value):
    for kind in ("JPEG", "PNG"):
        assert decode_picture(encoded(picture(), kind, exif=turned(value))).shape == (32, 48, 3)


@pytest.mark.parametrize("block", [b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"rubbish" * 9])
def test_a_malformed_exif_block_is_no_hindrance(block):
    for kind in ("JPEG", "PNG", "WEBP"):
        payload = encoded(picture(), kind, exif=b"Exif\0\0" + block)
        assert decode_picture(payload).shape == (32, 48, 3)


def deep_grey():
    """A ramp of 16 bits, and what it is in 8."""
    deep_HW = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    return deep_HW, np.round(deep_HW / 257)


def pgm(deep_HW, maximum):
    height, width = deep_HW.shape
    return b"P5 %d %d %d\n" % (width, height, maximum) + deep_HW.astype(">u2").tobytes()


@pytest.mark.parametrize("form", ["png", "tiff", "tiff, big-endian", "pgm", "int32 tiff"])
def test_grey_of_16_bits_is_scaled(form):
    deep_HW, oracle_HW = deep_grey()
    big_endian = Image.frombytes("I;16B", deep_HW.shape[::-1], deep_HW.astype(">u2").tobytes())
    payload = {
        "png": lambda: encoded(Image.fromarray(deep_HW), "PNG"),
        "tiff": lambda: encoded(Image.fromarray(deep_HW), "TIFF"),
        "tiff, big-endian": lambda: encoded(big_endian, "TIFF"),
        "pgm": lambda: pgm(deep_HW, 65535),
        "int32 tiff": lambda: encoded(Image.fromarray(deep_HW.astype(np.int32)), "TIFF"),
    }[form]()
    found = decode_picture(payload)
    assert found.dtype == np.uint8
    for channel in range(3):
        np.testing.assert_array_equal(found[:, :, channel], oracle_HW)


def test_a_dark_picture_of_16_bits_stays_dark():
    dark_HW = np.full((8, 8), 200, dtype=np.uint16)
    for payload in (
        encoded(Image.fromarray(dark_HW), "PNG"),
        encoded(Image.fromarray(dark_HW), "TIFF"),
        pgm(dark_HW, 65535),
    ):
        assert (decode_picture(payload) == 1).all()


def test_a_pgm_of_10_bits_and_one_of_7():
    deep_HW, oracle_HW = deep_grey()
    ten = decode_picture(pgm(deep_HW >> 6, 1023))[:, :, 0]
    assert np.abs(ten - oracle_HW).max() <= 1
    seven = b"P5 64 64 127\n" + (deep_HW >> 9).astype(np.uint8).tobytes()
    assert np.abs(decode_picture(seven)[:, :, 0] - oracle_HW).max() <= 2


def test_8_bits_stored_in_four_bytes_are_as_they_were():
    shallow_HW = np.arange(256, dtype=np.int32).reshape(16, 16)
    found = decode_picture(encoded(Image.fromarray(shallow_HW), "TIFF"))
    np.testing.assert_array_equal(found[:, :, 0], shallow_HW)


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0, 65536]], dtype=np.int32),
        np.array([[-1, 200]], dtype=np.int32),
        np.array([[0.0, 1.0]], dtype=np.float32),
    ],
)
def test_grey_without_a_known_white_is_refused(values):
    with pytest.raises(ValueError, match="does not say where white is: store it with 8 or 16 bits"):
        decode_picture(encoded(Image.fromarray(values), "TIFF"))


def test_postscript_is_never_opened(monkeypatch):
    from PIL import EpsImagePlugin

    def run(*args, **kwargs):
        raise AssertionError("Ghostscript was asked for")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(io.BytesIO(eps)).format == "EPS"  # Pillow would
    for other in (eps, b"%PDF-1.4\n", encoded(picture(), "PCX"), encoded(picture(), "ICO")):
        with pytest.raises(ValueError, match="of no known image format"):
            decode_picture(other)


IDAT = struct.pack(">I", 9) + b"IDAT" + bytes(13)


def claims(kind, width, height):
    """A small file that claims so many pixels."""
    if kind == "png":
        fields = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunk = struct.pack(">I", 13) + b"IHDR" + fields
        return images.PNG_START + chunk + struct.pack(">I", zlib.crc32(chunk[4:])) + IDAT
    if kind == "ppm":
        return b"P6 %d %d 255\n" % (width, height)
    if kind == "bmp":
        payload = bytearray(encoded(picture(), "BMP"))
        struct.pack_into("<ii", payload, 18, width, height)
        return bytes(payload)
    payload = bytearray(encoded(picture(16, 16), "JPEG", progressive=kind == "progressive"))
    at = payload.index(b"\xff\xc2" if kind == "progressive" else b"\xff\xc0")
    struct.pack_into(">HH", payload, at + 5, height, width)
    return bytes(payload)


@pytest.mark.parametrize("kind", ["baseline", "progressive", "png", "ppm", "bmp"])
def test_a_bomb_is_refused_from_its_header(kind):
    decoders = [decode_picture, lambda payload: decode_image(payload, 112)]
    decoders += [check_jpeg] if kind in ("baseline", "progressive") else []
    tracemalloc.start()
    for decode in decoders:
        with pytest.raises(ValueError, match="claims 9000 x 8000 pixels, more than 64000000"):
            decode(claims(kind, 9000, 8000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6


def test_a_frame_header_behind_rubbish_is_found():
    # libjpeg passes over bytes between markers, and over repeated 0xFF.
    bomb = claims("progressive", 20000, 20000)
    for inserted in (b"\0\0\0", b"\xff\xff\xff", b"\xff\xd0", b"rubbish\xff\0"):
        with pytest.raises(ValueError, match="claims 20000 x 20000 pixels"):
            decode_picture(bomb[:2] + inserted + bomb[2:])


@pytest.fixture
def fresh_limit():
    before = Image.MAX_IMAGE_PIXELS
    images.max_pixels.cache_clear()
    yield
    images.max_pixels.cache_clear()
    Image.MAX_IMAGE_PIXELS = before


def test_the_limit_can_be_set(monkeypatch, fresh_limit):
    monkeypatch.setenv("KAPPAFACE_MAX_PIXELS", "1535")
    with pytest.raises(ValueError, match=r"48 x 32 pixels, more than 1535: .*KAPPAFACE_MAX_PIXELS"):
        decode_picture(encoded(picture(), "PNG"))
    images.max_pixels.cache_clear()
    monkeypatch.setenv("KAPPAFACE_MAX_PIXELS", "1536")
    assert decode_picture(encoded(picture(), "PNG")).shape == (32, 48, 3)


def test_a_limit_above_that_of_pillow(monkeypatch, fresh_limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setenv("KAPPAFACE_MAX_PIXELS", "2000")
    assert decode_picture(encoded(picture(), "PNG")).shape == (32, 48, 3)


@pytest.mark.parametrize("text", ["", "0", "-5", "many", "1e6"])
def test_a_limit_that_is_no_number(monkeypatch, fresh_limit, text):
    monkeypatch.setenv("KAPPAFACE_MAX_PIXELS", text)
    with pytest.raises(ValueError, match=r"KAPPAFACE_MAX_PIXELS is .* expected a whole number"):
        images.max_pixels()


def test_a_flipped_bit_in_a_png_is_found():
    payload = encoded(picture(), "PNG")
    for at in range(8, len(payload)):
        damaged = bytearray(payload)
        damaged[at] ^= 1
        with pytest.raises(ValueError, match="not a readable image"):
            decode_picture(bytes(damaged))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP"])
def test_a_picture_that_is_cut_off_is_unreadable(kind):
    payload = encoded(picture(), kind)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(ValueError, match="not a readable image"):
            decode_picture(payload[: int(len(payload) * share)])


def test_an_upright_jpeg_without_exif_is_decoded_as_before():
    oracle = np.asarray(Image.open(io.BytesIO(jpeg(3))).convert("RGB"))
    assert np.abs(decode_picture(jpeg(3)).astype(int) - oracle).max() <= 2
