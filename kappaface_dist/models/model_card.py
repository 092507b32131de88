"""A model card: what a model is, what it was trained on, how good it is, how it is used."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from kappaface_dist.evaluation.protocol import FALSE_ACCEPT_RATES, rate_name
from kappaface_dist.evaluation.reports.names import in_markdown
from kappaface_dist.models.saved_model import SavedModel


def model_card(
    model: SavedModel,
    files: Mapping[str, str],
    *,
    summary: Mapping[str, Any] | None,
    evaluation: Mapping[str, Any] | None,
) -> str:
    """The card as Markdown.

    Args:
        files: what was exported, with a sentence on each.
        summary: of the training run; its numbers are of the last evaluation there.
        evaluation: what tools/evaluate.py --json wrote, if it was run; it takes precedence.
    """
    settings = model.settings
    parameters = sum(p.numel() for p in model.network.parameters())
    parts = [
        f"# {settings.name} face embeddings",
        f"Maps an aligned face of {settings.image_size} x {settings.image_size} pixels to"
        f" {settings.embedding_size} numbers; {parameters / 1e6:.1f} million parameters."
        f"\nSHA-256 of the weights: `{model.digest}`",
        "## Files\n\n" + "\n".join(f"- `{name}`: {text}" for name, text in files.items()),
        _use(settings.image_size),
        _training(model, summary),
        _results(summary, evaluation),
        "## Limits\n\nThe numbers hold for images like those of the sets above. How well people of"
        " different origin, age or image quality are told apart was not measured separately; a"
        " threshold holds for images like those of the set that it was measured on.",
    ]
    if model.config is not None:
        text = yaml.safe_dump(model.config, sort_keys=False)
        parts.append(f"## Configuration\n\n```yaml\n{text}```")
    return "\n\n".join(parts) + "\n"


def _use(image_size: int) -> str:
    return (
        "## Use\n\n```python\nfrom kappaface_dist.embedder import load_embedder\n\n"
        'embedder = load_embedder("backbone.onnx")  # or .safetensors\n'
        'first, second = embedder.embed(["a.jpg", "b.jpg"])  # unit length\n'
        "print(embedder.compare(first, second))  # cosine, 1 for equal\n```\n\n"
        f"Input: RGB, {image_size} x {image_size}, aligned by five points as ArcFace is,"
        " (pixels - 127.5) / 127.5, channels first. Output: an embedding of any length; compare"
        " directions, by the cosine. Adding the embedding of the mirror image helps."
    )


def _training(model: SavedModel, summary: Mapping[str, Any] | None) -> str:
    lines = []
    if model.config is not None:
        lines.append(f"- data: `{model.config['data']['train']}`")
    if summary is not None:
        lines += [
            f"- {summary['images']} images of {summary['classes']} identities",
            f"- {summary['steps']} steps, {summary['images_seen']} images seen, on"
            f" {summary['world_size']} process(es); last loss {summary['loss']:.3f}",
        ]
        if summary.get("corrupt_images"):
            lines.append(f"- {summary['corrupt_images']} images could not be decoded")
    if not lines:
        lines.append("- unknown: the weights came without their run")
    return "## Training\n\n" + "\n".join(lines)


def _results(summary: Mapping[str, Any] | None, evaluation: Mapping[str, Any] | None) -> str:
    sets = (evaluation or {}).get("sets") or (summary or {}).get("verification") or {}
    if not sets:
        return "## Results\n\nNot evaluated."
    rates = ("1e-1", "1e-2", "1e-3", "1e-4")
    lines = [
        f"| set | pairs | accuracy | AUC | EER | {' | '.join(f'TAR@{rate}' for rate in rates)} |",
        f"| :-- | {' | '.join(['--:'] * (4 + len(rates)))} |",
    ]
    for name, result in sets.items():
        name = in_markdown(name)
        accuracy = _percent(result["accuracy"])
        if result["accuracy"] is not None:
            accuracy += f" ± {100 * result['accuracy_std']:.2f}"
        cells = [accuracy, *(_percent(result.get(key)) for key in ("auc", "eer"))]
        cells += [_percent(result["tar_at_far"].get(rate)) for rate in rates]
        lines.append(f"| {name} | {result['num_pairs']} | {' | '.join(cells)} |")
    lines.append("\nPercent; accuracy over ten folds, – where the set has not enough pairs.")
    return "## Results\n\n" + "\n".join(lines) + _thresholds(sets)


def _thresholds(sets: Mapping[str, Any]) -> str:
    """A table of the thresholds; empty where no set has one."""
    rates = [
        rate
        for rate in map(rate_name, FALSE_ACCEPT_RATES)
        if any(result.get("threshold_at_far", {}).get(rate) is not None for result in sets.values())
    ]
    if not rates:
        return ""
    lines = [
        f"| one person from this cosine on | {' | '.join(f'FAR {rate}' for rate in rates)} |",
        f"| :-- | {' | '.join(['--:'] * len(rates))} |",
    ]
    for name, result in sets.items():
        found = result.get("threshold_at_far", {})
        bounds = (result.get("intervals") or {}).get("threshold_at_far", {})
        cells = [_cosine(found.get(rate), bounds.get(rate)) for rate in rates]
        lines.append(f"| {in_markdown(name)} | {' | '.join(cells)} |")
    lines.append(
        "\nFAR: the share of the set's pairs of different people that are taken for one person."
        + (" Brackets: 95 % bootstrap intervals over identities." if "[" in "".join(lines) else "")
        + " Of single images, the embedding of the mirror image added."
    )
    return "\n\n" + "\n".join(lines)


def _cosine(cosine: float | None, interval: Sequence[float] | None) -> str:
    if cosine is None:
        return "–"
    bounds = "" if interval is None else f" [{interval[0]:.3f}–{interval[1]:.3f}]"
    return f"{cosine:.3f}{bounds}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}"
