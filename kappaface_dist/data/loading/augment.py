"""Random changes to training images: what may happen to one, and what does.

What happens to an image is a function of (preset, seed, position in the stream) alone, drawn here
for both decoders. augment_cpu.py carries it out with Pillow, dali_graph.py inside DALI; the order
is crop, colour, window, occlusion, blur, low resolution, JPEG compression, mirror: the scene, the
lens, the sensor, the file. The results differ only where the backends do:
    resizing      the same filters; roundings differ by a level or two, "lanczos" by a few more
    blur          Pillow approximates the Gaussian by three box filters, DALI samples it
    JPEG          Pillow's side encodes and decodes, DALI simulates quantisation and 4:2:0
Shapes: B images on this rank.
"""

from dataclasses import dataclass, fields
from enum import IntEnum
from functools import cached_property

import numpy as np

from kappaface_dist.counter_random import uniform

# Filters of the low-resolution change, by the number that stands for each.
FILTERS = ("nearest", "linear", "cubic", "lanczos")
WHOLE = (0.0, 0.0, 1.0, 1.0)
# Share of red, green and blue in the grey of an RGB pixel (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Preset:
    """The chance of each change, between 0 and 1, and how far it goes."""

    flip: float = 0.5
    crop: float = 0.0  # a part of the image becomes the whole
    crop_area: tuple[float, float] = (0.6, 1.0)  # share of the image
    window: float = 0.0  # all but a part becomes black
    window_area: tuple[float, float] = (0.2, 1.0)
    photometric: float = 0.0  # brightness, contrast and saturation together
    photometric_range: float = 0.5  # each is multiplied by 1 - this to 1 + this
    grey: float = 0.0
    occlusion: float = 0.0  # a rectangle of one colour
    occlusion_area: tuple[float, float] = (0.05, 0.3)
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.005, 0.02)  # of the image's height
    low_resolution: float = 0.0  # scaled down and up again
    low_resolution_side: tuple[float, float] = (0.2, 1.0)  # of the image's height
    jpeg: float = 0.0
    jpeg_quality: tuple[float, float] = (20.0, 90.0)


# By the names that data.augment can have.
PRESETS = {
    "none": Preset(flip=0.0),
    "flip": Preset(),
    # M. Kim, A. Jain, X. Liu, "AdaFace", CVPR 2022, section 4.1: three changes, one time in five.
    "adaface": Preset(window=0.2, photometric=0.2, low_resolution=0.2),
    "strong": Preset(
        crop=0.3,
        photometric=0.3,
        grey=0.05,
        occlusion=0.15,
        blur=0.15,
        low_resolution=0.2,
        jpeg=0.2,
    ),
}


class Purpose(IntEnum):
    """Which random number is meant; the numbers are part of what a seed stands for."""

    FLIP = 1
    CROP = 2  # with the next five: whether, and the box
    WINDOW = 10
    PHOTOMETRIC = 20
    BRIGHTNESS = 21
    CONTRAST = 22
    SATURATION = 23
    GREY = 24
    OCCLUSION = 30
    OCCLUSION_COLOUR = 37  # with the next two
    BLUR = 40
    SIGMA = 41
    LOW_RESOLUTION = 50
    SIDE = 51
    DOWN = 52
    UP = 53
    JPEG = 60
    QUALITY = 61


@dataclass(frozen=True)
class Changes:
    """What happens to each image of a batch. Boxes are left, top, right, bottom, from 0 to 1."""

    flip_B: np.ndarray  # bool
    crop_B4: np.ndarray  # what becomes the whole image
    window_B4: np.ndarray  # what does not become black
    colour_B34: np.ndarray  # matrix and offset, for channels from 0 to 255
    occlusion_B4: np.ndarray  # empty for none
    occlusion_colour_B3: np.ndarray  # 0 to 255
    sigma_B: np.ndarray  # of the blur, share of the height; 0 for none
    side_B: np.ndarray  # of the low resolution, share of the height; 1 for none
    down_B: np.ndarray  # number in FILTERS
    up_B: np.ndarray
    quality_B: np.ndarray  # of the JPEG compression, 0 for none

    @cached_property
    def changed_B(self) -> np.ndarray:
        """Which images get more than a mirror: bool."""
        identity_34 = np.eye(3, 4, dtype=np.float32)
        whole_4 = np.array(WHOLE, dtype=np.float32)
        return (
            (self.sigma_B > 0)
            | (self.side_B < 1)
            | (self.quality_B > 0)
            | (self.occlusion_B4[:, 2] > 0)
            | (self.crop_B4 != whole_4).any(axis=1)
            | (self.window_B4 != whole_4).any(axis=1)
            | (self.colour_B34 != identity_34).any(axis=(1, 2))
        )

    def part(self, first: int, end: int) -> "Changes":
        """The changes of images first to end - 1."""
        return Changes(*(getattr(self, field.name)[first:end] for field in fields(self)))


def draw_changes(name: str, seed: int, position_B: np.ndarray) -> Changes:
    """What the preset does to the images at these positions of the stream."""
    preset = PRESETS[name]
    num = len(position_B)

    def draw(purpose: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        return (low + (high - low) * uniform(seed, purpose, position_B)).astype(np.float32)

    def happens(purpose: int, chance: float) -> np.ndarray:
        if chance == 0.0:
            return np.zeros(num, dtype=bool)
        return uniform(seed, purpose, position_B) < chance

    def box(purpose: int, chance: float, area: tuple[float, float], no: tuple[float, ...]):  # type: ignore[no-untyped-def]
        out_B4 = np.tile(np.array(no, np.float32), (num, 1))
        hit_B = happens(purpose, chance)
        if hit_B.any():
            area_B = draw(purpose + 1, *area)
            # Width to height from 3:4 to 4:3, equally likely on either side.
            stretch_B = np.exp(draw(purpose + 2, np.log(0.75), np.log(4 / 3)) / 2)
            width_B = np.minimum(np.sqrt(area_B) * stretch_B, 1.0)
            height_B = np.minimum(np.sqrt(area_B) / stretch_B, 1.0)
            left_B = draw(purpose + 3) * (1 - width_B)
            top_B = draw(purpose + 4) * (1 - height_B)
            box_B4 = np.stack([left_B, top_B, left_B + width_B, top_B + height_B], axis=1)
            out_B4[hit_B] = np.clip(box_B4, 0.0, 1.0)[hit_B]
        return out_B4

    hit_B = happens(Purpose.BLUR, preset.blur)
    sigma_B = np.where(hit_B, draw(Purpose.SIGMA, *preset.blur_sigma), np.float32(0))
    hit_B = happens(Purpose.LOW_RESOLUTION, preset.low_resolution)
    side_B = np.where(hit_B, draw(Purpose.SIDE, *preset.low_resolution_side), np.float32(1))
    hit_B = happens(Purpose.JPEG, preset.jpeg)
    quality_B = np.where(hit_B, draw(Purpose.QUALITY, *preset.jpeg_quality), np.float32(0))
    colours = [draw(Purpose.OCCLUSION_COLOUR + k, 0.0, 255.0) for k in range(3)]
    return Changes(
        flip_B=happens(Purpose.FLIP, preset.flip),
        crop_B4=box(Purpose.CROP, preset.crop, preset.crop_area, WHOLE),
        window_B4=box(Purpose.WINDOW, preset.window, preset.window_area, WHOLE),
        colour_B34=colour_matrices(
            happens(Purpose.PHOTOMETRIC, preset.photometric),
            happens(Purpose.GREY, preset.grey),
            *(
                draw(purpose, 1 - preset.photometric_range, 1 + preset.photometric_range)
                for purpose in (Purpose.BRIGHTNESS, Purpose.CONTRAST, Purpose.SATURATION)
            ),
        ),
        occlusion_B4=box(Purpose.OCCLUSION, preset.occlusion, preset.occlusion_area, (0,) * 4),
        occlusion_colour_B3=np.stack(colours, axis=1),
        sigma_B=sigma_B,
        side_B=side_B,
        down_B=(draw(Purpose.DOWN) * len(FILTERS)).astype(np.int32),
        up_B=(draw(Purpose.UP) * len(FILTERS)).astype(np.int32),
        quality_B=np.round(quality_B).astype(np.int32),
    )


def colour_matrices(
    photometric_B: np.ndarray,
    grey_B: np.ndarray,
    brightness_B: np.ndarray,
    contrast_B: np.ndarray,
    saturation_B: np.ndarray,
) -> np.ndarray:
    """[B, 3, 4] matrices: x -> brightness · (m + contrast · (x - m)), m = 127.5, with the colour's
    distance from grey multiplied by the saturation; the identity where not photometric_B."""
    num = len(grey_B)
    one_B = np.ones(num, dtype=np.float32)
    gain_B = np.where(photometric_B, brightness_B * contrast_B, one_B)
    offset_B = np.where(photometric_B, brightness_B * (1 - contrast_B) * 127.5, 0 * one_B)
    saturation_B = np.where(grey_B, 0 * one_B, np.where(photometric_B, saturation_B, one_B))
    grey_33 = np.tile(np.array(LUMA, np.float32), (3, 1))
    mix_B33 = saturation_B[:, None, None] * np.eye(3, dtype=np.float32)
    mix_B33 = mix_B33 + (1 - saturation_B)[:, None, None] * grey_33
    out_B34 = np.empty((num, 3, 4), dtype=np.float32)
    out_B34[:, :, :3] = gain_B[:, None, None] * mix_B33
    out_B34[:, :, 3] = offset_B[:, None]
    return out_B34
