"""A model card: what a model is, what it was trained on, how good it is, how it is used."""

from collections.abc import Mapping
from typing import Any

import yaml

from kappaface_dist.models.saved_model import SavedModel
from kappaface_dist.models.summary_file import read_summary


def find_summary(model: SavedModel) -> dict[str, Any] | None:
    """summary.json of the run that the model is from, if the run has finished.

    Raises:
        ValueError: it is damaged.
    """
    path = model.path.resolve().parents[1] / "summary.json"
    return read_summary(path) if path.is_file() else None


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
        " threshold has to be chosen on images of the intended use.",
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
        accuracy = _percent(result["accuracy"])
        if result["accuracy"] is not None:
            accuracy += f" ± {100 * result['accuracy_std']:.2f}"
        cells = [accuracy, *(_percent(result.get(key)) for key in ("auc", "eer"))]
        cells += [_percent(result["tar_at_far"].get(rate)) for rate in rates]
        lines.append(f"| {name} | {result['num_pairs']} | {' | '.join(cells)} |")
    lines.append("\nPercent; accuracy over ten folds, – where the set has not enough pairs.")
    return "## Results\n\n" + "\n".join(lines)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}"
