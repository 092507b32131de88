"""Draw .github/layers.svg from the code: the layers, what lies in them, and who imports whom.

python .github/draw_layers.py [--check]
"""

import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.test_architecture import LAYERS, NAME, Tree, unit  # noqa: E402

PICTURE = ROOT / ".github" / "layers.svg"
WIDTH, ROW, BOX_HEIGHT, LEFT = 980, 84, 44, 24
STYLE = """
svg { font: 14px system-ui, sans-serif; color: #222; background: #fff; }
rect { fill: #eef4fa; stroke: #1f6fb4; } text { fill: currentColor; text-anchor: middle; }
.size { font-size: 11px; opacity: .7; } path { fill: none; stroke: #8886; }
@media (prefers-color-scheme: dark) {
  svg { color: #ddd; background: #16181b; } rect { fill: #22303c; stroke: #79b8f2; }
}
"""


def draw(tree: Tree) -> str:
    """The picture; equal for equal code."""
    lines: Counter[str] = Counter()
    for module, path in tree.modules.items():
        lines[unit(module)] += len(path.read_text(encoding="utf-8").splitlines())
    places = box_places(lines)
    arrows = Counter(
        (unit(module), unit(other))
        for module, others in tree.graph().items()
        for other in others
        if unit(other) != unit(module) and {unit(module), unit(other)} <= places.keys()
    )
    height = ROW * len(LAYERS) + 16
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        f' aria-label="{NAME}: layers and imports"><style>{STYLE}</style>'
    ]
    for (upper, lower), number in sorted(arrows.items()):
        (x0, y0, w0), (x1, y1, w1) = places[upper], places[lower]
        start, end = x0 + w0 / 2, x1 + w1 / 2
        y0 += BOX_HEIGHT
        bend = (y1 - y0) / 2
        out.append(
            f'<path stroke-width="{min(0.6 + number / 6, 4):.1f}" d="M{start:.0f} {y0}'
            f' C{start:.0f} {y0 + bend:.0f} {end:.0f} {y1 - bend:.0f} {end:.0f} {y1}"/>'
        )
    for name, (x, y, w) in places.items():
        out.append(
            f'<rect x="{x:.0f}" y="{y}" width="{w:.0f}" height="{BOX_HEIGHT}" rx="5"/>'
            f'<text x="{x + w / 2:.0f}" y="{y + 19}">{name}</text>'
            f'<text class="size" x="{x + w / 2:.0f}" y="{y + 35}">{lines[name]} lines</text>'
        )
    return "\n".join([*out, "</svg>"]) + "\n"


def box_places(lines: Counter[str]) -> dict[str, tuple[float, float, float]]:
    """(Left, top, width) of each folder or file, a layer a row; the files of a row share it."""
    places = {}
    for depth, layer in enumerate(LAYERS):
        names = sorted(layer, key=lambda name: (-lines[name], name))
        weights = [max(len(name), 9) for name in names]
        across = WIDTH - 2 * LEFT - 12 * (len(names) - 1)
        widths = [min(across * weight / sum(weights), 240) for weight in weights]
        left = (WIDTH - sum(widths) - 12 * (len(names) - 1)) / 2
        for name, width in zip(names, widths, strict=True):
            places[name] = (left, 8 + ROW * depth, width)
            left += width + 12
    return places


def names(picture: str) -> list[str]:
    return re.findall(r"<text x[^>]*>(.*?)</text>", picture)


def main() -> None:
    picture = draw(Tree(ROOT))
    if "--check" in sys.argv:
        # Sizes and imports change with every day; the layers and their names must be right.
        if names(PICTURE.read_text(encoding="utf-8")) != names(picture):
            sys.exit(f"error: {PICTURE} has other layers: python .github/draw_layers.py")
        return
    PICTURE.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
