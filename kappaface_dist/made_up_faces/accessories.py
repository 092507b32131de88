"""What covers a face in some photos: glasses, sunglasses, a mask, a hand, a cap.

Shapes: P points.
"""

import numpy as np

from kappaface_dist.made_up_faces.features import curve, mouth_height, section
from kappaface_dist.made_up_faces.identity import Photo
from kappaface_dist.made_up_faces.render import Head, band, dull_colour, mix, oval, skin_colour

# Of the photos of an identity of middling difficulty, this share each.
OCCLUSIONS = (("mask", 0.05), ("hand", 0.05), ("cap", 0.07), ("sunglasses", 0.04))


def occlusion_of(photo: Photo) -> str:
    """The name of what covers the face in this photo, "none" for nothing."""
    threshold = 0.0
    for name, share in OCCLUSIONS:
        threshold += share
        if photo.occlusion < threshold:
            return name
    return "none"


def draw_glasses(head: Head, dark: bool) -> None:
    identity = head.identity
    frame = mix((20, 20, 24), (150, 110, 60), float(identity.glasses_shape > 0.6))
    square = identity.glasses_shape % 0.5 > 0.25
    x, y, width, height = identity.eye_spacing, identity.eye_y + 0.02, 0.20, 0.15
    for side in (-1, 1):
        lens_P2 = oval(side * x, y, width, height)
        if square:
            offset_P2 = lens_P2 - [side * x, y]
            sign_P2 = np.sign(offset_P2) * np.abs(offset_P2 / [width, height]) ** 0.5
            lens_P2 = sign_P2 * [width, height] + [side * x, y]
        if dark:
            head.paint(lens_P2, (18, 18, 22, 245), 0.10)
        else:
            head.paint(lens_P2, (225, 235, 245, 40), 0.10)
        head.stroke(np.concatenate([lens_P2, lens_P2[:2]]), frame, 0.035, 0.10)
        arm_P2 = np.array([[side * (x + width), y - 0.03], [side * identity.face_width, y - 0.05]])
        head.stroke(arm_P2, frame, 0.03, np.array([0.10, 0.0]))
    head.stroke(np.array([[-x + width, y - 0.03], [x - width, y - 0.03]]), frame, 0.035, 0.14)


def draw_mask(head: Head, rng: np.random.Generator) -> None:
    identity = head.identity
    base = ((176, 206, 226), (236, 236, 236), (36, 38, 46))[rng.integers(3)]
    top = identity.eye_y + 0.62 * identity.nose_length
    y_P = np.linspace(top + 0.1, identity.chin_length - 0.01, 10)
    edge_P = 0.95 * head.half_width(y_P)
    nose_P = np.linspace(-0.9, 0.9, 9)
    upper_P2 = curve(nose_P * identity.face_width * 0.95, top + 0.12 * np.abs(nose_P))
    outline_P2 = np.concatenate(
        [upper_P2, np.stack([edge_P, y_P], axis=1), np.stack([-edge_P, y_P], axis=1)[::-1]]
    )
    head.paint(outline_P2, base, 0.12)
    for y in (0.45, 0.60, 0.75):
        x_P = np.linspace(-0.4, 0.4, 5)
        head.stroke(curve(x_P, y), mix(base, (0, 0, 0), 0.2), 0.014, 0.12)


def draw_hand(head: Head, photo: Photo) -> None:
    """A palm and four fingers over one side of the lower face."""
    skin = mix(skin_colour(head.identity), (0, 0, 0), 0.08)
    side = 1 if photo.place > 0.5 else -1
    y = mouth_height(head.identity) + 0.15 - 0.5 * (photo.place % 0.5)
    centre_x, centre_y = head.centre_2
    for finger in range(4):
        start = np.array([side * 0.85, y + 0.15 * finger])
        end = np.array([side * (0.05 + 0.05 * abs(finger - 1)), y - 0.10 + 0.155 * finger])
        for colour, width in ((mix(skin, (0, 0, 0), 0.35), 0.17), (skin, 0.135)):
            points = [*(start * head.scale + head.centre_2), *(end * head.scale + head.centre_2)]
            head.draw.line(points, fill=colour, width=round(width * head.scale))
            x, z, r = points[2], points[3], width * head.scale / 2
            head.draw.ellipse((x - r, z - r, x + r, z + r), fill=colour)
    palm = oval(side * 0.95, y + 0.28, 0.34, 0.40) * head.scale + [centre_x, centre_y]
    head.draw.polygon(palm.ravel().tolist(), fill=skin)


def draw_cap(head: Head, rng: np.random.Generator) -> None:
    identity = head.identity
    colour = dull_colour(rng)
    brow = identity.eye_y - identity.brow_height
    rim = min(brow - 0.10, -0.38)
    for angle in (-0.8, -0.4, 0.0, 0.4, 0.8, 1.1):
        head.fill(section(head, angle, 0.10, -1.05, rim), colour)
    t_P = np.linspace(-1, 1, 11)
    x_P = 0.92 * head.half_width(np.array([rim])) * t_P
    back_P3 = head.on_face(curve(x_P, rim - 0.06))
    front_P3 = head.on_face(curve(x_P, rim + 0.05), 0.30 * np.sqrt(1 - t_P**2))
    head.fill(band(back_P3, front_P3), mix(colour, (0, 0, 0), 0.35))


def draw_accessories(head: Head, photo: Photo, rng: np.random.Generator) -> None:
    """Everything this photo's person wears or holds in front of the face."""
    occlusion = occlusion_of(photo)
    if occlusion == "sunglasses" or photo.glasses < head.identity.glasses_habit:
        draw_glasses(head, dark=occlusion == "sunglasses")
    if occlusion == "mask":
        draw_mask(head, rng)
    elif occlusion == "hand":
        draw_hand(head, photo)
    elif occlusion == "cap":
        draw_cap(head, rng)
