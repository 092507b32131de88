"""The page of a margin report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kappaface_dist.text_files import shown


def write_page(folder: Path, summary: dict[str, Any], pictures: Sequence[Path]) -> None:
    """Write report.md, which shows the pictures beside it."""
    shown = "".join(f"\n![{path.stem}]({path.name})\n" for path in pictures)
    (folder / "report.md").write_text(summary_text(summary) + shown, encoding="utf-8")


def summary_text(summary: dict[str, Any]) -> str:
    """The summary as Markdown that reads as plain text too."""
    margin, related = summary["margin"], summary["correlation"]
    lines = [
        f"# Margins of {summary['checkpoint']}",
        "",
        f"Step {summary['step']}: {summary['classes']} classes, {summary['images']} images; margin"
        f" {margin['min']:.3f} to {margin['max']:.3f}, mean {margin['mean']:.3f} over classes and"
        f" {margin['mean_over_images']:.3f} over images.",
        f"Neutral classes, too few images to measure: {summary['neutral_share']:.1%}.",
        "",
        "| correlation | with log images (Pearson) | with images (Spearman) |",
        "|---|---|---|",
    ]
    for name in ("margin", "concentration"):
        cells = [
            _number(related[f"{name}_with_{key}"], "+.2f")
            for key in ("log_images_pearson", "images_spearman")
        ]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    lines += [
        "",
        "| images | classes | mean margin | from | to | median concentration | neutral |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in summary["by_images"]:
        low, high = row["images"]
        lines.append(
            f"| {low if low == high else f'{low} to {high}'} | {row['classes']}"
            f" | {row['margin_mean']:.3f} | {row['margin_min']:.3f} | {row['margin_max']:.3f}"
            f" | {_number(row['concentration_median'], '.1f')} | {row['neutral_share']:.0%} |"
        )
    if "reliability" in summary:
        lines += ["", *_reliability_rows(summary["reliability"])]
    noise = summary.get("noise")
    lines += ["", *_hardest_rows(summary["hardest"], noise)]
    lines += ["", *_class_rows("easiest", summary["easiest"])]
    return "\n".join(lines) + "\n"


def _reliability_rows(found: dict[str, Any]) -> list[str]:
    """What two sets of photos of one class say of each other."""
    rows, share = found["by_images"], found["noise_share"]
    if not rows:
        why = "no photo was embedded" if not found["embedded"] else "too few classes have enough"
        return [f"How much of a margin is knowledge: not measured, {why} (--embed)."]
    lines = [
        f"How much of a concentration is knowledge, from {found['embedded']} training photos: two"
        " sets of so many photos of one class, correlated over classes (1: all knowledge, 0: all"
        " chance), and the error of a concentration.",
        "",
        "| photos of a set | classes | correlation | of ranks | error | of independent photos |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['images']} | {row['classes']} | {row['pearson']:.2f} | {row['spearman']:.2f}"
        f" | {row['error']:.3g} | {row['expected_error']:.3g} |"
        for row in rows
    ]
    if share is not None:
        lines += [
            "",
            f"Of the spread of the measured classes' concentrations, and with it of their margins,"
            f" {share:.0%} is sampling error (of the variance).",
        ]
    return [*lines, *_estimate_rows(found["estimates"])]


def _estimate_rows(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What each estimate from few photos knows of a class, by its other photos."""
    if not rows:
        return []
    lines = [
        "",
        "How well few photos of a class say how hard it is: rank correlation over classes with the"
        " concentration of its other photos, and Pearson's of the margins from both; `*`: the"
        " interval of the difference to `unbiased`, or to the first of the margins, leaves out 0"
        " (95 % of draws of people and photos).",
        "",
        f"| from so many photos | {' | '.join(row['photos'] for row in rows)} |",
        "|---|" + "---|" * len(rows),
        f"| (classes) | {' | '.join(str(row['people']) for row in rows)} |",
    ]
    for name in rows[0]["correlation"]:
        cells = []
        for row in rows:
            low, high = row["difference"].get(name, (-1.0, 1.0))
            told = "" if low <= 0 <= high else " *"
            cells.append(f"{row['correlation'][name]:.2f}{told}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _hardest_rows(entries: Sequence[dict[str, Any]], noise: dict[str, Any] | None) -> list[str]:
    """The hardest classes, and whether they are hard or dirty."""
    rows = _class_rows("hardest", entries)
    if noise is None:
        return [*rows, "", "Hard or dirty: not judged, no photo was embedded (--embed)."]
    found = {entry["class"]: entry for entry in noise["classes"]}
    columns = [("probably wrong photos", "concentration of its photos", "without those", "it is")]
    columns.append(("---",) * 4)
    for entry in entries:
        one = found[entry["class"]]
        number = "two people: " if one["two_people"] else ""
        number += f"{one['wrong']} of {one['photos']}"
        kappas = (_number(one[key], ".1f") for key in ("concentration_of_photos", "without_wrong"))
        columns.append((number, *kappas, one["kind"]))
    rows = [f"{row} {' | '.join(more)} |" for row, more in zip(rows, columns, strict=True)]
    kinds = [entry["kind"] for entry in noise["classes"]]
    return [
        *rows,
        "",
        f"Of {noise['photos']} embedded photos {noise['wrong']} probably sit in another class, or"
        f" are a second person's in one; they are in {len(kinds) - kinds.count('hard')} of"
        f" {len(kinds)} classes. `dirty`: without them more than half of what the class lacks to"
        f" the median one (concentration {_number(noise['median'], '.1f')}) is gone; `both`: the"
        " others lack more than that; `hard`: none of its photos is probably wrong. Labels that the"
        " network has learnt by heart do not look wrong.",
        *(f"Not judged: {note}." for note in noise["notes"]),
    ]


def _class_rows(title: str, entries: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        f"| {entry['class']}{_name(entry['name'])} | {entry['images']}"
        f" | {entry['concentration']:.1f} | {entry['margin']:.3f} |"
        for entry in entries
    ]
    return [f"| {title} classes | images | concentration | margin |", "|---|---|---|---|", *rows]


def _name(name: str | None) -> str:
    return "" if name is None else " " + shown(name).replace("|", r"\|")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
