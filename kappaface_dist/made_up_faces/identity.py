"""Made-up identities and the photos taken of them, as numbers; render.py draws them.

Every draw comes from a generator that is numbered by (seed, stream, identity, image) and by nothing
else, so any photo can be made alone, in any order and in any process.

Lengths are in head units: the skull's half height is about 1. Coordinates of a head: x to the
viewer's right, y down, z towards the viewer. Colours are RGB from 0 to 255.
"""

from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

# One stream of random numbers for each thing drawn: a further draw for one leaves the others alone.
TRAITS, DIFFICULTY, NUM_IMAGES, PHOTO, PIXELS, PAIRS = range(6)

T = TypeVar("T")


def numbered_generator(
    seed: int, stream: int, identity: int, image: int = 0
) -> np.random.Generator:
    """The generator of one (seed, stream, identity, image), independent of all the others."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, image, identity, stream]))


def uniform(low: float, high: float) -> Any:
    return field(metadata={"draw": lambda rng: rng.uniform(low, high)})


def normal(std: float) -> Any:
    return field(metadata={"draw": lambda rng: min(max(rng.standard_normal(), -2.0), 2.0) * std})


def _draw(cls: type[T], rng: np.random.Generator) -> T:
    return cls(**{f.name: f.metadata["draw"](rng) for f in fields(cls)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Identity:
    """What stays the same in all images of one person."""

    # skull and jaw
    face_width: float = uniform(0.62, 0.86)
    chin_length: float = uniform(0.86, 1.14)
    jaw_power: float = uniform(1.7, 3.6)  # low: pointed, high: square
    jaw_taper: float = uniform(0.0, 0.35)
    cheek: float = uniform(0.0, 0.08)
    ear_size: float = uniform(0.12, 0.25)
    # skin
    skin_tone: float = uniform(0, 1)  # 0 light, 1 dark
    skin_hue: float = uniform(-1, 1)  # -1 yellow, 1 pink
    age: float = uniform(0, 1)
    freckles: float = uniform(0, 1)
    # eyes and brows
    eye_spacing: float = uniform(0.25, 0.40)
    eye_y: float = uniform(-0.16, 0.04)
    eye_width: float = uniform(0.10, 0.175)
    eye_height: float = uniform(0.040, 0.095)
    eye_tilt: float = uniform(-0.30, 0.30)
    eye_colour: float = uniform(0, 1)
    eye_bags: float = uniform(0, 1)
    brow_height: float = uniform(0.13, 0.26)
    brow_thickness: float = uniform(0.018, 0.085)
    brow_width: float = uniform(0.13, 0.22)
    brow_tilt: float = uniform(-0.30, 0.35)
    brow_arch: float = uniform(-0.02, 0.09)
    brow_darkness: float = uniform(0.3, 1)
    # nose and mouth
    nose_length: float = uniform(0.26, 0.50)
    nose_width: float = uniform(0.09, 0.21)
    nose_bridge: float = uniform(0.03, 0.09)
    nose_height: float = uniform(0.10, 0.30)
    mouth_y: float = uniform(0.13, 0.26)  # below the nose
    mouth_width: float = uniform(0.18, 0.36)
    upper_lip: float = uniform(0.02, 0.085)
    lower_lip: float = uniform(0.03, 0.11)
    lip_red: float = uniform(0, 1)
    mouth_curve: float = uniform(-0.05, 0.05)
    # hair
    hair_colour: float = uniform(0, 1)
    hair_shade: float = uniform(-1, 1)
    hair_style: float = uniform(0, 1)  # bald, cropped, short, big, long: see face_render
    hair_volume: float = uniform(0.04, 0.22)
    hair_length: float = uniform(0.3, 1.5)
    hairline: float = uniform(-0.80, -0.48)
    hairline_peak: float = uniform(-0.14, 0.16)
    hair_part: float = uniform(-0.5, 0.5)
    hair_slant: float = uniform(-0.20, 0.20)
    beard_style: float = uniform(0, 1)  # none, stubble, moustache, goatee, full
    beard_density: float = uniform(0.5, 0.95)
    # marks and habits
    mole_x: float = uniform(-0.42, 0.42)
    mole_y: float = uniform(0.05, 0.75)
    mole_size: float = uniform(-0.03, 0.05)  # not above 0: none
    glasses_habit: float = uniform(-0.7, 0.9)  # probability of wearing them, clipped to 0..1
    glasses_shape: float = uniform(0, 1)


@dataclass(frozen=True)
class Photo:
    """What differs between two images of one person; angles in radians."""

    yaw: float = normal(0.40)
    pitch: float = normal(0.20)
    roll: float = normal(0.12)
    shift_x: float = normal(0.05)
    shift_y: float = normal(0.05)
    zoom: float = normal(0.06)
    light_x: float = normal(0.85)
    light_y: float = normal(0.45)
    contrast: float = normal(0.22)
    exposure: float = normal(0.22)
    warmth: float = normal(0.09)
    smile: float = normal(0.6)
    mouth_open: float = normal(0.5)
    eye_open: float = normal(0.35)
    brow_raise: float = normal(0.03)
    gaze: float = normal(0.5)
    hair_change: float = normal(0.04)
    blur: float = normal(0.9)
    noise: float = normal(7.0)
    compression: float = normal(22.0)
    occlusion: float = uniform(0, 1)
    glasses: float = uniform(0, 1)
    place: float = uniform(0, 1)  # where an occlusion sits


@lru_cache(maxsize=4)
def draw_identity(seed: int, identity: int) -> Identity:
    """The traits of one identity."""
    return _draw(Identity, numbered_generator(seed, TRAITS, identity))


@lru_cache(maxsize=4)
def draw_difficulty(seed: int, identity: int) -> float:
    """How much the photos of one identity differ, in 0..1; independent of their number."""
    return float(numbered_generator(seed, DIFFICULTY, identity).uniform())


def draw_num_images(seed: int, identity: int, low: int = 4, high: int = 60) -> int:
    """Images of one identity: a long tail, low * (high / low)^(u^1.5) with u uniform in 0..1."""
    u = numbered_generator(seed, NUM_IMAGES, identity).uniform()
    return round(low * (high / low) ** (u**1.5))


@lru_cache(maxsize=4)
def draw_photo(seed: int, identity: int, image: int) -> Photo:
    """The circumstances of one image.

    All deviations grow with the identity's difficulty, from 0.45 to 1.25 times what Photo says, and
    so does the probability of an occlusion.
    """
    photo = _draw(Photo, numbered_generator(seed, PHOTO, identity, image))
    spread = 0.45 + 0.8 * draw_difficulty(seed, identity)
    values = {f.name: getattr(photo, f.name) * spread for f in fields(Photo)}
    # Chances, not deviations. An image is occluded where this one is small (face_accessories).
    values |= {
        "occlusion": photo.occlusion / spread,
        "glasses": photo.glasses,
        "place": photo.place,
    }
    return Photo(**values)
