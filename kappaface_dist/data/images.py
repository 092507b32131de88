"""One image: encoded bytes -> pixels as a viewer shows them, and back.

A picture is turned as its EXIF orientation says, and grey of more than 8 bits is scaled to 8. The
number of pixels is read from the header, and one with too many is refused before it is decoded.
Shapes: H W the image size in pixels; pixels are uint8, RGB, channels last.
"""

import io
import os
import zlib
from functools import cache

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from kappaface_dist.data.jpeg_header import JPEG_START, read_jpeg_header

# Pillow knows many more, some of which start other programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM", "GIF")
MAX_PIXELS = 64_000_000
PNG_START = b"\x89PNG\r\n\x1a\n"
TO_8_BITS = 257  # 65535 / 255
STRIP = 512  # rows


def decode_image(payload: bytes, image_size: int) -> np.ndarray:
    """Decode a picture and resize it to image_size x image_size.

    JPEGs are decoded at the smallest of libjpeg's own scales that is not below image_size; what
    remains of the way is resized with a box-filtered bilinear.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        ValueError: the bytes are not a readable image; the message says what the decoder said.
    """
    pixels_HW3 = decode_picture(payload, at_least=image_size)
    if pixels_HW3.shape[:2] != (image_size, image_size):
        resized = Image.fromarray(pixels_HW3).resize(
            (image_size, image_size), Image.Resampling.BILINEAR
        )
        pixels_HW3 = np.asarray(resized)
    return pixels_HW3


def decode_picture(payload: bytes, at_least: int = 0) -> np.ndarray:
    """Decode a picture of one of FORMATS in the size it has.

    Args:
        at_least: a JPEG may come out smaller, at the smallest of libjpeg's own scales that is not
            below so many pixels; 0: in its own size.

    Returns:
        uint8 [H, W, 3], RGB, upright.

    Raises:
        ValueError: the bytes are not a readable image; the message says what the decoder said.
    """
    if payload[:2] != JPEG_START:
        return _upright(*_decode_with_pillow(payload))
    header = read_jpeg_header(payload)
    check_size(header.height, header.width)
    try:
        pixels_HW3 = simplejpeg.decode_jpeg(
            payload, colorspace="RGB", min_height=at_least, min_width=at_least
        )
    except ValueError as error:
        raise ValueError(f"not a readable image ({error})") from error
    return _upright(pixels_HW3, header.orientation)


def check_jpeg(payload: bytes) -> None:
    """Raise ValueError if libjpeg-turbo finds fault with the file, as decode_image() does.

    All of its coded data is read, but only an eighth of the pixels is computed.
    """
    header = read_jpeg_header(payload)
    check_size(header.height, header.width)
    try:
        simplejpeg.decode_jpeg(payload, colorspace="GRAY", min_factor=8)
    except ValueError as error:
        raise ValueError(f"not a readable image ({error})") from error


def check_size(height: int, width: int) -> None:
    """Raise ValueError if a picture of so many pixels is not to be decoded."""
    if height * width > max_pixels():
        raise ValueError(
            f"the picture claims {width} x {height} pixels, more than {max_pixels()}: make it"
            " smaller, or set KAPPAFACE_MAX_PIXELS if it is meant"
        )


@cache
def max_pixels() -> int:
    """How many pixels a picture may have: 64 million, or $KAPPAFACE_MAX_PIXELS.

    Decoding takes up to nine bytes of memory for each.

    Raises:
        ValueError: the variable is not a whole number above 0.
    """
    text = os.environ.get("KAPPAFACE_MAX_PIXELS", str(MAX_PIXELS))
    if not (text.isascii() and text.isdigit() and int(text)):
        raise ValueError(f"KAPPAFACE_MAX_PIXELS is {text!r}, expected a whole number above 0")
    # Pillow has a limit of its own, which only a higher one of ours has to move.
    if Image.MAX_IMAGE_PIXELS is not None and int(text) > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = int(text)
    return int(text)


def encode_jpeg(pixels_HW3: np.ndarray, quality: int = 95) -> bytes:
    """Encode uint8 RGB pixels [H, W, 3] as JPEG without chroma subsampling."""
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels_HW3), quality=quality, colorspace="RGB", colorsubsampling="444"
    )


def _decode_with_pillow(payload: bytes) -> tuple[np.ndarray, int]:
    """uint8 [H, W, 3] as stored, and EXIF's orientation."""
    max_pixels()  # moves Pillow's limit, where ours is higher
    try:
        with Image.open(io.BytesIO(payload), formats=FORMATS) as image:
            check_size(image.height, image.width)
            if payload.startswith(PNG_START):
                _check_png(payload)
            image.load()
            return _rgb(image), _orientation(image)
    except Exception as error:  # Pillow's readers let through whatever their parsing meets
        # Pillow's own text for the first has the address of an object in it.
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "of no known image format" if unknown else str(error) or type(error).__name__
        raise ValueError(f"not a readable image ({reason})") from error


def _check_png(payload: bytes) -> None:
    """Compare the checksum of every chunk; Pillow passes over those of the pixels."""
    at, kind = len(PNG_START), b""
    while kind != b"IEND":
        length = int.from_bytes(payload[at : at + 4], "big")
        end = at + 8 + length
        kind = payload[at + 4 : at + 8]
        if end + 4 > len(payload):
            raise ValueError("cut off before its end")
        if zlib.crc32(payload[at + 4 : end]) != int.from_bytes(payload[end : end + 4], "big"):
            raise ValueError(f"damaged: the checksum of its chunk {kind!r} at byte {at} is wrong")
        at = end + 4


def _orientation(image: Image.Image) -> int:
    """EXIF's of a loaded picture, 1 to 8; Pillow has turned a TIFF by then, and says 1."""
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001 (a viewer ignores a malformed block, too)
        return 1
    return value if value in range(1, 9) else 1


def _rgb(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3] of a loaded picture."""
    if image.mode.startswith(("I", "F")):
        return np.repeat(_grey_8_bits(image)[:, :, None], 3, axis=2)
    pixels_HW3 = np.empty((image.height, image.width, 3), np.uint8)
    # In strips: Pillow copies a whole picture three times on its way to numpy.
    for top in range(0, image.height, STRIP):
        box = (0, top, image.width, min(top + STRIP, image.height))
        pixels_HW3[box[1] : box[3]] = np.asarray(image.crop(box).convert("RGB"))
    return pixels_HW3


def _grey_8_bits(image: Image.Image) -> np.ndarray:
    """uint8 [H, W] of grey with more than 8 bits, of which Pillow would make white.

    Two bytes run up to 65535. Four say nothing about where white is: up to 255 and up to 65535 they
    are taken for the 8 or 16 bits that they were; nothing is guessed beyond.
    """
    value_HW = np.asarray(image)
    low, high = value_HW.min(), value_HW.max()
    if value_HW.dtype.kind not in "iu" or not 0 <= low <= high <= 65535:
        raise ValueError(
            f"grey of {value_HW.dtype} from {low} to {high}, which does not say where white is:"
            " store it with 8 or 16 bits"
        )
    # Pillow brings a PGM or PNG that it opens with four bytes to 16 bits itself.
    if image.mode == "I" and image.format == "TIFF" and high <= 255:
        return value_HW.astype(np.uint8)
    return ((value_HW.astype(np.int32) + TO_8_BITS // 2) // TO_8_BITS).astype(np.uint8)


def _upright(pixels_HW3: np.ndarray, orientation: int) -> np.ndarray:
    """The picture as EXIF's orientation wants it shown."""
    if orientation == 1:
        return pixels_HW3
    if orientation >= 5:  # rows are columns
        pixels_HW3 = pixels_HW3.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels_HW3 = pixels_HW3[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels_HW3 = pixels_HW3[::-1]
    return np.ascontiguousarray(pixels_HW3)
