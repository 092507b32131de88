"""Draws one photo of a made-up identity: polygons on a turned head, then light, blur and noise.

A head is a stack of horizontal sections, half_width(y) wide and depth(y) deep. Features lie on that
surface, the nose stands off it, so turning the head moves them against each other (parallax).

Shapes: P points, H W image size; a point is x y z in head units or x y in pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from kappaface_dist.made_up_faces.identity import Identity, Photo

SUPERSAMPLING = 2
EYE_COLOURS = [(70, 42, 25), (46, 30, 22), (110, 80, 40), (90, 120, 80), (80, 125, 170)]
HAIR_COLOURS = [(22, 18, 18), (52, 34, 24), (96, 60, 34), (150, 72, 34), (205, 168, 96)]
HAIR_COLOURS += [(160, 158, 156), (228, 226, 222)]
SKIN_LIGHT, SKIN_MIDDLE, SKIN_DARK = (242, 208, 182), (196, 146, 108), (84, 54, 40)
HAIR_STYLES = ("bald", "cropped", "short", "short", "big", "long", "long")
BEARDS = ("none", "none", "none", "none", "stubble", "moustache", "goatee", "full")
SECTION_ANGLES = (0.0, 0.35, 0.7, 1.05, 1.35)
ANGLE_P = np.linspace(0, 2 * math.pi, 18, endpoint=False)
CIRCLE_P2 = np.stack([np.cos(ANGLE_P), np.sin(ANGLE_P)], axis=1)
# Heights at which a head's sections are tabulated: interpolation is what drawing spends least on.
TABLE_Y = np.linspace(-1.3, 1.3, 261)

Colour = tuple[int, ...]
T = TypeVar("T")


def choose(options: Sequence[T], share: float) -> T:
    """The option at share (0..1) of a list."""
    return options[min(int(share * len(options)), len(options) - 1)]


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """first moved towards second by share."""
    return tuple(round(a + (b - a) * share) for a, b in zip(first, second, strict=True))


def skin_colour(identity: Identity) -> Colour:
    tone = identity.skin_tone * 2
    low, high = (SKIN_LIGHT, SKIN_MIDDLE) if tone < 1 else (SKIN_MIDDLE, SKIN_DARK)
    red, green, blue = mix(low, high, tone % 1 if tone < 2 else 1.0)
    return (red, green - round(7 * identity.skin_hue), blue + round(9 * identity.skin_hue))


def hair_colour(identity: Identity) -> Colour:
    base = choose(HAIR_COLOURS, identity.hair_colour)
    target = (255, 240, 220) if identity.hair_shade > 0 else (0, 0, 0)
    return mix(base, target, 0.18 * abs(identity.hair_shade))


def half_width(identity: Identity, y_P: np.ndarray) -> np.ndarray:
    """Half the width of the head at the heights y_P."""
    up = np.clip(-y_P / 1.05, 0, 1)
    down = np.clip(y_P / identity.chin_length, 0, 1)
    upper = np.sqrt(1 - up**2.3)
    lower = (1 - down**identity.jaw_power) ** 0.55 * (1 - identity.jaw_taper * down)
    cheek = 1 + identity.cheek * np.exp(-(((y_P - 0.25) / 0.25) ** 2))
    return identity.face_width * np.where(y_P < 0, upper, lower) * cheek


def depth(y_P: np.ndarray) -> np.ndarray:
    """Half the depth of the head at the heights y_P."""
    return 0.80 * np.clip(1 - np.abs(y_P / 1.2) ** 3, 0.05, 1)


def oval(x: float, y: float, width: float, height: float) -> np.ndarray:
    """Points [P, 2] of an oval with the half axes width and height."""
    return CIRCLE_P2 * (width, height) + (x, y)


def band(top_P2: np.ndarray, bottom_P2: np.ndarray) -> np.ndarray:
    """The closed outline of two curves that both run from left to right."""
    return np.concatenate([top_P2, bottom_P2[::-1]])


@dataclass(frozen=True)
class Head:
    """A head as the camera sees it; draws polygons given in head units."""

    identity: Identity
    rotation_33: np.ndarray
    scale: float  # pixels per head unit
    centre_2: np.ndarray
    draw: ImageDraw.ImageDraw
    width_table: np.ndarray  # half_width and depth at TABLE_Y
    depth_table: np.ndarray

    def half_width(self, y_P: np.ndarray) -> np.ndarray:
        return np.interp(y_P, TABLE_Y, self.width_table)

    def depth(self, y_P: np.ndarray) -> np.ndarray:
        return np.interp(y_P, TABLE_Y, self.depth_table)

    def on_face(self, xy_P2: np.ndarray, lift: float | np.ndarray = 0.0) -> np.ndarray:
        """Points of the face's surface, raised towards the viewer by lift."""
        x_P, y_P = xy_P2[:, 0], xy_P2[:, 1]
        share_P = x_P / np.maximum(self.half_width(y_P), 1e-3)
        z_P = self.depth(y_P) * np.sqrt(np.maximum(1 - share_P * share_P, 0.0)) + lift
        return np.column_stack([xy_P2, z_P])

    def pixels(self, xyz_P3: np.ndarray) -> list[float]:
        turned_P3 = xyz_P3 @ self.rotation_33.T
        # A slight perspective: what is nearer is larger.
        return (
            (turned_P3[:, :2] * (self.scale * (1 + 0.12 * turned_P3[:, 2:])) + self.centre_2)
            .ravel()
            .tolist()
        )

    def fill(self, xyz_P3: np.ndarray, colour: Colour) -> None:
        self.draw.polygon(self.pixels(xyz_P3), fill=colour)

    def paint(self, xy_P2: np.ndarray, colour: Colour, lift: float | np.ndarray = 0.0) -> None:
        """Fill an outline that lies on the face."""
        self.fill(self.on_face(xy_P2, lift), colour)

    def stroke(
        self, xy_P2: np.ndarray, colour: Colour, width: float, lift: float | np.ndarray = 0.0
    ) -> None:
        """Draw an open curve that lies on the face."""
        pixels = self.pixels(self.on_face(xy_P2, lift))
        self.draw.line(pixels, fill=colour, width=max(round(width * self.scale), 1), joint="curve")


def turn(photo: Photo) -> np.ndarray:
    """The rotation matrix of a head: yaw, then pitch, then roll."""
    cos, sin = np.cos, np.sin
    y, p, r = photo.yaw, photo.pitch, photo.roll
    yaw = np.array([[cos(y), 0, sin(y)], [0, 1, 0], [-sin(y), 0, cos(y)]])
    pitch = np.array([[1, 0, 0], [0, cos(p), sin(p)], [0, -sin(p), cos(p)]])
    roll = np.array([[cos(r), -sin(r), 0], [sin(r), cos(r), 0], [0, 0, 1]])
    return roll @ pitch @ yaw


def make_head(
    identity: Identity, photo: Photo, draw: ImageDraw.ImageDraw, canvas_size: int
) -> Head:
    """The head of identity as photo shows it, on a canvas of canvas_size pixels."""
    centre_2 = canvas_size * np.array([0.5 + photo.shift_x, 0.52 + photo.shift_y])
    scale = 0.40 * canvas_size * (1 + photo.zoom)
    tables = half_width(identity, TABLE_Y), depth(TABLE_Y)
    return Head(identity, turn(photo), scale, centre_2, draw, *tables)


def background(rng: np.random.Generator, size: int) -> Image.Image:
    """A gradient of random colours with a few things in it; nothing of it belongs to a person."""
    # Mostly grey: rooms and streets rather than neon.
    coarse = rng.integers(30, 220) + rng.integers(-35, 35, 3) + rng.integers(-45, 45, (3, 3, 3))
    image = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
    image = image.resize((size, size), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(rng.integers(0, 6)):
        x, y, width, height = rng.uniform(0, size, 4)
        colour = (*dull_colour(rng), int(rng.integers(60, 220)))
        box = (x - width / 2, y - height / 3, x + width / 2, y + height / 3)
        (draw.rectangle if rng.uniform() < 0.6 else draw.ellipse)(box, fill=colour)
    return image


def dull_colour(rng: np.random.Generator) -> Colour:
    """A random colour of things: any brightness, moderate saturation."""
    return tuple(int(c) for c in np.clip(rng.integers(20, 230) + rng.integers(-50, 50, 3), 0, 255))


def light_field(head: Head, photo: Photo, size: int) -> np.ndarray:
    """Brightness [H, W] of a rounded head under one lamp and the room's light."""
    grid = (np.arange(size, dtype=np.float32) + 0.5) * SUPERSAMPLING
    centre_x, centre_y = head.centre_2
    u_W = (grid - np.float32(centre_x)) / np.float32(head.scale * 0.95)
    v_H = (grid - np.float32(centre_y)) / np.float32(head.scale * 1.25)
    radius_HW = u_W[None] ** 2 + v_H[:, None] ** 2
    z_HW = np.sqrt(np.maximum(1 - radius_HW, 0.0))
    lamp = np.array([photo.light_x, photo.light_y - 0.35, 1.0], dtype=np.float32)
    lamp /= np.linalg.norm(lamp)
    facing_HW = np.clip(u_W[None] * lamp[0] + v_H[:, None] * lamp[1] + z_HW * lamp[2], 0, 1)
    return 0.42 + 0.78 * facing_HW


def develop(
    image: Image.Image,
    empty: Image.Image,
    head: Head,
    photo: Photo,
    rng: np.random.Generator,
) -> np.ndarray:
    """Light, colour cast, contrast, blur and noise; uint8 [H, W, 3].

    What differs between image and empty (the background alone) is the person, whom the lamp lights.
    """
    image = image.reduce(SUPERSAMPLING)
    changed_HW3 = np.asarray(ImageChops.difference(image, empty.reduce(SUPERSAMPLING)))
    person_HW = (changed_HW3[..., 0] | changed_HW3[..., 1] | changed_HW3[..., 2]) > 3
    pixels_HW3 = np.asarray(image, dtype=np.float32)
    size = len(pixels_HW3)
    light_HW = np.where(person_HW, light_field(head, photo, size), np.float32(0.85))
    pixels_HW3 = pixels_HW3 * light_HW[..., None]
    cast = np.exp([photo.warmth, 0, -photo.warmth]) * math.exp(photo.exposure)
    pixels_HW3 = (pixels_HW3 * cast.astype(np.float32) - 110) * math.exp(photo.contrast) + 110
    blur = abs(photo.blur) * size / 112
    if blur > 0.4:
        soft = Image.fromarray(np.clip(pixels_HW3, 0, 255).astype(np.uint8))
        pixels_HW3 = np.asarray(soft.filter(ImageFilter.GaussianBlur(blur)), dtype=np.float32)
    noise_HW3 = rng.standard_normal(pixels_HW3.shape, dtype=np.float32)
    return np.clip(pixels_HW3 + abs(photo.noise) * noise_HW3, 0, 255).astype(np.uint8)
