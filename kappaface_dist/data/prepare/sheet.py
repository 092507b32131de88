"""A sheet of many small pictures to look at, each with a line or two below it.

Shapes: H W image size.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

TILE = 112
WIDTH = 136
HEIGHT = TILE + 30
COLUMNS = 10


def contact_sheet(tiles: Sequence[tuple[np.ndarray, Sequence[str]]]) -> Image.Image:
    """Pictures (uint8 RGB [H, W, 3], square) with their lines of text, ten in a row."""
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new(
        "RGB", (WIDTH * min(COLUMNS, max(1, len(tiles))), HEIGHT * max(1, rows)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for number, (pixels_HW3, lines) in enumerate(tiles):
        left, top = WIDTH * (number % COLUMNS), HEIGHT * (number // COLUMNS)
        picture = Image.fromarray(pixels_HW3).resize((TILE, TILE), Image.Resampling.BILINEAR)
        sheet.paste(picture, (left + (WIDTH - TILE) // 2, top + 2))
        for line, text in enumerate(lines):
            # Pillow's own font has no sign beyond Latin-1.
            shown = text.encode("latin-1", "replace").decode("latin-1")
            while shown and draw.textlength(shown) > WIDTH - 6:
                shown = shown[1:]
            draw.text((left + 3, top + TILE + 3 + 13 * line), shown, fill="black")
    return sheet
