"""Put the README's picture together from a finished quickstart: faces, margins, ROC.

python .github/draw_quickstart.py data/faces runs/quickstart .github/quickstart.png
"""

import sys
from pathlib import Path

from PIL import Image

HEIGHT = 340  # pixels


def draw(faces: Path, run: Path) -> Image.Image:
    """The sheet of made-up faces beside the run's own plots, all as high."""
    parts = [faces / "sheet.png", run / "plots" / "margins.png", run / "plots" / "roc.png"]
    images = [Image.open(path).convert("RGB") for path in parts]
    shrunk = [
        image.resize((round(image.width * HEIGHT / image.height), HEIGHT), Image.Resampling.LANCZOS)
        for image in images
    ]
    picture = Image.new("RGB", (sum(image.width for image in shrunk), HEIGHT), "white")
    left = 0
    for image in shrunk:
        picture.paste(image, (left, 0))
        left += image.width
    return picture


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2])).save(sys.argv[3], optimize=True)
