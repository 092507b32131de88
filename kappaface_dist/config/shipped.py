"""Where the folders beside the package lie: in its source tree, or inside an installed package."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def shipped_folder(name: str) -> Path:
    """`configs`, `launch` or `tools`: of the wheel they are part of, or of the source tree."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def shipped_config(path: Path) -> Path | None:
    """The package's own configuration for a path that says configs/..., or None.

    configs/glint360k.yaml is then a name that works in any folder.
    """
    parts = path.parts
    if "configs" not in parts:
        return None
    rest = parts[len(parts) - parts[::-1].index("configs") :]
    found = shipped_folder("configs").joinpath(*rest)
    return found if found.is_file() and ".." not in rest else None
