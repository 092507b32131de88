"""The header that is read without decoding is the one that Pillow and libjpeg read."""

import io
import struct

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from kappaface_dist.data.jpeg_header import JpegHeader, read_jpeg_header
from tests.unit.data.made_records import jpeg


def segment(block):
    return b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block


def with_exif(*blocks):
    file = io.BytesIO()
    Image.new("RGB", (24, 16)).save(file, "JPEG")
    payload = file.getvalue()
    return payload[:2] + b"".join(map(segment, blocks)) + payload[2:]


def exif_block(order, kind, value):
    """One directory: a tag before the orientation, and the orientation."""
    sign = {"<": b"II*\0", ">": b"MM\0*"}[order]
    entries = struct.pack(f"{order}HHIHH", 0x010F, 2, 1, 0, 0)
    number = struct.pack(f"{order}H2x" if kind == 3 else f"{order}I", value)
    entries += struct.pack(f"{order}HHI", 0x0112, kind, 1) + number
    return sign + struct.pack(f"{order}IH", 8, 2) + entries + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
def test_orientation_in_both_byte_orders(order, kind):
    for value in range(1, 9):
        payload = with_exif(exif_block(order, kind, value))
        assert Image.open(io.BytesIO(payload)).getexif()[0x112] == value
        assert read_jpeg_header(payload) == JpegHeader(16, 24, value)


def test_the_thumbnail_inside_the_exif_block_is_not_the_picture():
    payload = with_exif(exif_block("<", 3, 6) + jpeg(1, 64))
    assert read_jpeg_header(payload) == JpegHeader(16, 24, 6)


def test_the_first_of_two_blocks_counts():
    payload = with_exif(exif_block("<", 3, 8), exif_block("<", 3, 3))
    assert read_jpeg_header(payload).orientation == 8


def test_other_application_blocks_say_nothing():
    file = io.BytesIO()
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x/>"
    Image.new("L", (24, 16)).save(
        file, "JPEG", icc_profile=bytes(70_000), xmp=xmp, comment=b"Exif\0\0"
    )
    assert read_jpeg_header(file.getvalue()) == JpegHeader(16, 24, 1)


def test_on_damaged_headers_it_agrees_with_libjpeg():
    rng = np.random.default_rng(0)
    payload = with_exif(exif_block(">", 3, 6))
    agreed = 0
    for _ in range(3000):
        damaged = bytearray(payload)
        for at in rng.integers(0, len(payload), 3):
            damaged[at] = rng.integers(0, 256)
        found = read_jpeg_header(bytes(damaged))
        assert 1 <= found.orientation <= 8
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(bytes(damaged))
        except ValueError:
            continue
        assert (found.height, found.width) == (height, width)
        agreed += 1
    assert agreed > 1000


@pytest.mark.parametrize("payload", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8" + b"\xff" * 50])
def test_what_has_no_header(payload):
    assert read_jpeg_header(payload) == JpegHeader(0, 0, 1)
