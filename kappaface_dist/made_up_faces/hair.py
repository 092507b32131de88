"""The hair and the beard of a drawn face; see render.py.

Shapes: P points, S points of a strand.
"""

import numpy as np

from kappaface_dist.made_up_faces.features import BLACK, T_P, WHITE, curve, mouth_height, section
from kappaface_dist.made_up_faces.identity import Identity, Photo
from kappaface_dist.made_up_faces.render import (
    BEARDS,
    HAIR_STYLES,
    Colour,
    Head,
    band,
    choose,
    hair_colour,
    mix,
    skin_colour,
)


def draw_back_of_head(head: Head, photo: Photo) -> None:
    """Hair behind the face, and the far half of the skull."""
    identity = head.identity
    style = choose(HAIR_STYLES, identity.hair_style)
    colour = mix(hair_colour(identity), BLACK, 0.15)
    skin = mix(skin_colour(identity), BLACK, 0.10)
    if style == "long":
        length = identity.hair_length + photo.hair_change
        width = identity.face_width + identity.hair_volume
        y_P = np.linspace(-0.6, length, 8)
        x_P = width * (1 + 0.10 * np.sin(y_P * 3))
        for z in (-0.5, -0.15):
            right_P3 = np.stack([x_P, y_P, np.full_like(x_P, z)], axis=1)
            head.fill(np.concatenate([right_P3, (right_P3 * [-1, 1, 1])[::-1]]), colour)
    grow = hair_growth(identity, photo)
    for angle in (-1.2, -0.8, -0.4):
        head.fill(section(head, angle, 0.0, -1.05, identity.chin_length), skin)
        if style != "bald":
            head.fill(section(head, angle, grow, -1.05, 0.40), colour)


def hair_growth(identity: Identity, photo: Photo) -> float:
    factor = {"bald": 0.0, "cropped": 0.35, "short": 1.0, "big": 2.0, "long": 1.0}
    return factor[choose(HAIR_STYLES, identity.hair_style)] * (
        identity.hair_volume + photo.hair_change
    )


def draw_beard(head: Head) -> None:
    identity = head.identity
    style = choose(BEARDS, identity.beard_style)
    if style == "none":
        return
    colour: Colour = (*hair_colour(identity), round(255 * identity.beard_density))
    mouth, chin = mouth_height(identity), identity.chin_length
    t_P = T_P
    if style in ("moustache", "full", "goatee"):
        x_P = (identity.mouth_width + 0.03) * t_P
        top_P = mouth - 0.06 - identity.upper_lip - 0.07 * (1 - t_P**2)
        head.paint(band(curve(x_P, top_P), curve(x_P, mouth - 0.015 + 0.05 * t_P**2)), colour, 0.06)
    if style in ("full", "stubble", "goatee"):
        y_P = np.linspace(mouth + 0.02 if style == "goatee" else 0.10, chin, 9)
        reach = 0.20 if style == "goatee" else 10.0
        edge_P = np.minimum(head.half_width(y_P), reach)
        outer_P2 = np.concatenate(
            [np.stack([-edge_P, y_P], axis=1), np.stack([edge_P, y_P], axis=1)[::-1]]
        )
        inner_P = mouth + 0.05 + identity.lower_lip - 0.02 * (1 - t_P**2)
        if style == "goatee":
            inner_P2 = curve(0.16 * t_P, inner_P)
        else:
            inner_P = inner_P + (0.12 - inner_P) * t_P**6
            inner_P2 = curve(0.97 * t_P * head.half_width(inner_P), inner_P)
        faint = (*colour[:3], 70) if style == "stubble" else colour
        head.paint(np.concatenate([outer_P2, inner_P2[::-1]]), faint)


def draw_front_hair(head: Head, photo: Photo) -> None:
    """The hair above the forehead: from the hairline to the silhouette of the skull."""
    identity = head.identity
    style = choose(HAIR_STYLES, identity.hair_style)
    if style == "bald":
        return
    colour = hair_colour(identity)
    if style == "cropped":
        colour = mix(colour, skin_colour(identity), 0.25)
    temple = -0.18 if style in ("short", "cropped") else 0.10
    arc_P3 = section(head, 0.0, hair_growth(identity, photo), -1.05, temple)
    # The outline runs over the right side down, then up the left one: start it at the left temple.
    count = len(arc_P3) // 2
    arc_P3 = np.concatenate([arc_P3[count:], arc_P3[:count]])
    x_P = np.linspace(1, -1, 15) * 0.985
    side_P = np.abs(x_P)
    line_P = identity.hairline + identity.hairline_peak * (1 - 3 * side_P) * (side_P < 0.7)
    line_P = line_P + identity.hair_slant * (x_P - identity.hair_part) * (side_P < 0.85)
    line_P = np.clip(line_P, -0.95, identity.eye_y - 0.16)
    line_P = line_P + (temple - line_P) * np.clip((side_P - 0.72) / 0.26, 0, 1) ** 1.5
    hairline_P2 = np.stack([x_P * head.half_width(line_P), line_P], axis=1)
    head.fill(np.concatenate([arc_P3, head.on_face(hairline_P2, 0.03)]), colour)
    light = (*mix(colour, WHITE, 0.3), 110)
    for start in (-0.45, -0.1, 0.25):
        x_S = identity.hair_part * 0.5 + start + np.linspace(0, 0.22, 5)
        head.stroke(curve(x_S, -0.86 + 0.5 * (x_S - identity.hair_part * 0.5) ** 2), light, 0.02)
