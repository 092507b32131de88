"""The parts of a drawn face, from the back to the front; see render.py.

Shapes: P points.
"""

import math

import numpy as np

from kappaface_dist.made_up_faces.identity import Identity, Photo
from kappaface_dist.made_up_faces.render import (
    EYE_COLOURS,
    SECTION_ANGLES,
    Head,
    band,
    choose,
    dull_colour,
    hair_colour,
    mix,
    oval,
    skin_colour,
)

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
SHARE_P = np.linspace(0, 1, 22)
T_P = np.linspace(-1, 1, 11)  # along an eye, a brow, a mouth, from left to right


def curve(x_P: np.ndarray, y_P: np.ndarray | float) -> np.ndarray:
    """Points [P, 2]."""
    return np.column_stack([x_P, y_P + 0 * x_P])


def section(head: Head, angle: float, grow: float, top: float, bottom: float) -> np.ndarray:
    """The outline [P, 3] of the head cut at one angle around its vertical axis, grown by grow.

    It runs down the right side between the heights top and bottom, then up the left one.
    """
    y_P = top + (bottom - top) * SHARE_P
    # Hair stands off the skull upwards as well as sideways.
    x_P = head.half_width(y_P) + grow * np.maximum(1.2 - np.abs(y_P), 0.0)
    z_P = head.depth(y_P) * math.sin(angle)
    y_P = np.where(y_P < 0, y_P * (1 + grow), y_P)
    right_P3 = np.column_stack([x_P * math.cos(angle), y_P, z_P])
    return np.concatenate([right_P3, (right_P3 * (-1, 1, 1))[::-1]])


def draw_body(head: Head, rng: np.random.Generator) -> None:
    """Shoulders and neck."""
    cloth = dull_colour(rng)
    width = rng.uniform(1.2, 1.7)
    x, y = head.centre_2
    s = head.scale
    head.draw.ellipse((x - width * s, y + 1.05 * s, x + width * s, y + 3 * s), fill=cloth)
    neck = 0.62 * head.identity.face_width
    shade = mix(skin_colour(head.identity), BLACK, 0.28)
    xyz_P3 = np.array(
        [[-neck, 0.4, -0.2], [neck, 0.4, -0.2], [neck, 1.3, -0.25], [-neck, 1.3, -0.25]]
    )
    head.fill(xyz_P3, shade)


def draw_ear(head: Head, side: int) -> None:
    identity = head.identity
    skin = skin_colour(identity)
    x = side * (identity.face_width + 0.25 * identity.ear_size)
    for share, colour in ((1.0, mix(skin, BLACK, 0.06)), (0.55, mix(skin, (120, 30, 20), 0.3))):
        xy_P2 = oval(x, 0.08, 0.5 * identity.ear_size * share, identity.ear_size * share)
        head.fill(np.concatenate([xy_P2, np.full((len(xy_P2), 1), -0.08)], axis=1), colour)


def draw_skin(head: Head, photo: Photo) -> None:
    identity = head.identity
    skin = skin_colour(identity)
    near = 1 if photo.yaw < 0 else -1
    draw_ear(head, -near)
    for angle in SECTION_ANGLES:
        head.fill(section(head, angle, 0.0, -1.05, identity.chin_length), skin)
    if abs(photo.yaw) < 0.12:
        draw_ear(head, -near)
    draw_ear(head, near)
    blush = (*mix(skin, (205, 60, 50), 0.5), 60)
    for side in (-1, 1):
        head.paint(oval(side * 0.55 * identity.face_width, 0.30, 0.16, 0.12), blush)
    if identity.freckles > 0.75:
        # The same freckles in every photo: they come from the traits.
        angle_P = np.arange(14) * 2.4 + identity.freckles * 50
        radius_P = 0.12 + 0.33 * np.modf(np.arange(14) * 0.618 + identity.mole_x)[0]
        for x, y in zip(
            radius_P * np.cos(angle_P), 0.22 + 0.5 * radius_P * np.sin(angle_P), strict=True
        ):
            head.paint(oval(x, y, 0.016, 0.016), (*mix(skin, (90, 40, 15), 0.6), 170))
    if identity.age > 0.6:
        line = (*mix(skin, BLACK, 0.45), round(170 * (identity.age - 0.4)))
        x_P = np.linspace(-0.3, 0.3, 7)
        for y in (-0.52, -0.42):
            head.stroke(curve(x_P, y - 0.03 * np.cos(6 * x_P)), line, 0.016)
        for side in (-1, 1):
            fold_P2 = np.array([[0.16, 0.32], [0.26, 0.46], [0.30, 0.62]]) * [side, 1]
            head.stroke(fold_P2, line, 0.02)
    if identity.mole_size > 0:
        size = 0.5 * identity.mole_size + 0.014
        head.paint(oval(identity.mole_x, identity.mole_y, size, size), (60, 34, 26))


def draw_eyes(head: Head, photo: Photo) -> None:
    identity = head.identity
    skin = skin_colour(identity)
    brow = mix(skin, mix(hair_colour(identity), BLACK, 0.35), 0.35 + 0.65 * identity.brow_darkness)
    openness = float(np.clip(0.95 + photo.eye_open, 0.12, 1.35))
    width, height = identity.eye_width, identity.eye_height * openness
    t_P = T_P
    for side in (-1, 1):
        x, y = side * identity.eye_spacing, identity.eye_y
        tilt = identity.eye_tilt * side
        head.paint(oval(x, y - 0.02, 1.45 * width, 0.13), (*mix(skin, BLACK, 0.5), 60), -0.02)
        if identity.eye_bags > 0.5:
            bag_P2 = curve(x + width * t_P, y + 0.09 + 0.04 * (1 - t_P**2))
            head.stroke(bag_P2, (*mix(skin, BLACK, 0.5), 110), 0.022)
        rise_P = height * (1 - np.abs(t_P) ** 2.2)
        base_P = y - tilt * width * t_P
        top_P2 = curve(x + width * t_P, base_P - rise_P)
        head.paint(band(top_P2, curve(x + width * t_P, base_P + 0.75 * rise_P)), (238, 234, 228))
        iris = min(0.062, 1.05 * height + 0.01)
        look = x + 0.45 * width * photo.gaze
        colour = choose(EYE_COLOURS, identity.eye_colour)
        head.paint(oval(look, y, 0.062, iris), colour)
        head.paint(oval(look, y, 0.028, min(0.028, iris)), (8, 8, 8))
        head.paint(oval(look + 0.02, y - 0.02, 0.011, 0.011), WHITE)
        head.stroke(top_P2, mix(skin, (10, 5, 5), 0.85), 0.026)
        slant = side * t_P
        y_P = y - identity.brow_height - photo.brow_raise - identity.brow_tilt * 0.2 * slant
        y_P = y_P - identity.brow_arch * (1 - t_P**2)
        x_P = 1.05 * x + identity.brow_width * t_P
        thick_P = identity.brow_thickness * (1 - 0.35 * slant) * (1 - 0.5 * t_P**4)
        head.paint(band(curve(x_P, y_P - thick_P / 2), curve(x_P, y_P + thick_P / 2)), brow, 0.02)


def draw_nose(head: Head, photo: Photo) -> None:
    identity = head.identity
    skin = skin_colour(identity)
    top, tip = identity.eye_y + 0.04, identity.eye_y + identity.nose_length + 0.06
    bridge, wing, height = identity.nose_bridge, identity.nose_width, identity.nose_height
    dark = (*mix(skin, BLACK, 0.55), 115)
    bright = (*mix(skin, WHITE, 0.5), 120)
    for side in (-1, 1):
        xy_P2 = np.array([[0.3 * bridge, top], [bridge, top], [wing, tip], [0.35 * wing, tip]])
        lift_P = height * np.array([0.25, 0.0, 0.2, 0.9])
        lit = side * photo.light_x > 0
        head.paint(xy_P2 * [side, 1], (*dark[:3], 35) if lit else dark, lift_P)
    y_P = np.linspace(top, tip, 5)
    lift_P = height * np.linspace(0.3, 1.0, 5)
    head.stroke(np.stack([0 * y_P, y_P], axis=1), bright, 0.5 * bridge, lift_P)
    head.paint(oval(0, tip, wing, 0.075), mix(skin, (120, 50, 40), 0.12), 0.55 * height)
    head.paint(oval(0, tip - 0.03, 0.55 * wing, 0.05), bright, height)
    for side in (-1, 1):
        head.paint(
            oval(side * 0.52 * wing, tip + 0.045, 0.3 * wing, 0.024), (42, 20, 16), 0.5 * height
        )
    head.paint(oval(0, tip + 0.09, 0.8 * wing, 0.03), (*mix(skin, BLACK, 0.5), 80), 0.1)


def mouth_height(identity: Identity) -> float:
    nose_tip = identity.eye_y + identity.nose_length + 0.06
    return min(nose_tip + identity.mouth_y, identity.chin_length - 0.2)


def draw_mouth(head: Head, photo: Photo) -> None:
    identity = head.identity
    skin = skin_colour(identity)
    lip = mix(mix(skin, (150, 60, 60), 0.45), (175, 25, 45), 0.7 * identity.lip_red**2)
    y = mouth_height(identity)
    t_P = T_P
    smile = float(np.clip(photo.smile, -0.5, 1.2))
    x_P = identity.mouth_width * (1 + 0.16 * smile) * t_P
    line_P = y - (identity.mouth_curve + 0.07 * smile) * (t_P**2 - 0.3)
    arch_P = 1 - t_P**2
    gap_P = 0.16 * max(photo.mouth_open - 0.1, 0.0) * arch_P
    bow_P = arch_P * (1 - 0.35 * np.exp(-((t_P / 0.22) ** 2)))
    low_P = line_P + gap_P
    head.paint(band(curve(x_P, low_P), curve(x_P, low_P + identity.lower_lip * arch_P)), lip, 0.05)
    upper_P2 = band(curve(x_P, line_P - identity.upper_lip * bow_P), curve(x_P, line_P))
    head.paint(upper_P2, mix(lip, BLACK, 0.12), 0.05)
    if gap_P.max() > 0.015:
        head.paint(band(curve(x_P, line_P), curve(x_P, low_P)), (50, 14, 16), 0.04)
        teeth_P = line_P + np.minimum(gap_P, 0.05)
        head.paint(band(curve(0.8 * x_P, line_P), curve(0.8 * x_P, teeth_P)), (235, 230, 218), 0.04)
    head.stroke(curve(x_P, line_P), mix(lip, BLACK, 0.6), 0.014, 0.05)
