"""The verification sets of a run: evaluated while it trains, reported at its end."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from kappaface_dist.config.file import to_dict
from kappaface_dist.evaluation.one_to_one.pairs import (
    PairResult,
    evaluate_pairs,
    not_evaluated,
    pixel_baseline,
)
from kappaface_dist.evaluation.reports.pair_set import SetReport, describe_set
from kappaface_dist.models.export import weights_digest
from kappaface_dist.models.saved_model import backbone_settings, model_facts
from kappaface_dist.training.build import Job, build_network

# Of the intervals in a run's own report: half a second for a set of 6 000 pairs.
NUM_REPLICATES = 200


def verify_sets(
    job: Job, network: nn.Module, progress: Callable[[int], object] | None = None
) -> dict[str, PairResult]:
    """Verify a backbone on every set of the configuration; collective.

    A set that cannot be evaluated has a result without numbers, whose note says why: a picture of a
    verification set is no reason to lose a training.
    """
    return {name: _verify(job, network, name, progress) for name in job.pair_sets}


def _verify(
    job: Job, network: nn.Module, name: str, progress: Callable[[int], object] | None
) -> PairResult:
    pairs = job.pair_sets[name]
    try:
        return evaluate_pairs(
            network,
            pairs,
            image_size=job.config.data.image_size,
            batch_size=job.config.data.batch_size,
            device=job.device,
            progress=progress,
        )
    except ValueError as error:  # on every rank, whichever found it
        return not_evaluated(pairs, str(error))


def baselines(
    job: Job, results: dict[str, PairResult]
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Accuracy on every set of the backbone before training, and of raw pixels; collective.

    Args:
        results: of the trained backbone: a set without numbers there has none here.
    """
    network = build_network(job.config, job.device, initial=True)
    untrained = {name: result.accuracy for name, result in verify_sets(job, network).items()}
    pixels = {
        name: pixel_baseline(job.pair_sets[name]) if was_evaluated(result) else None
        for name, result in results.items()
    }
    return untrained, pixels


def was_evaluated(result: PairResult) -> bool:
    """Whether there is a distance for each pair."""
    return len(result.distance_P) > 0


def describe_sets(
    job: Job, results: dict[str, PairResult], pixels: dict[str, float | None]
) -> dict[str, SetReport]:
    """Intervals and the hardest pairs of each set that was evaluated."""
    return {
        name: describe_set(
            Path(job.config.evaluate.sets[name]),
            job.pair_sets[name],
            result,
            pixels=pixels[name],
            num_replicates=NUM_REPLICATES,
        )
        for name, result in results.items()
        if was_evaluated(result)
    }


def write_verification(
    job: Job, results: dict[str, PairResult], reports: dict[str, SetReport], export: Path
) -> None:
    """verification/report.html with plots and tables, as tools/evaluate.py --report has it."""
    # Here, since matplotlib takes a second to import and only one rank draws, once.
    from kappaface_dist.evaluation.reports.pairs import write_html_report

    missing = {f"set {n}": r.note for n, r in results.items() if not was_evaluated(r)}
    facts = model_facts(export, weights_digest(job.network), backbone_settings(job.config))
    write_html_report(
        verification_page(job.config.folder).parent,
        reports,
        title=f"Verification of {job.config.run.name}",
        facts={**facts, **missing},
        config=to_dict(job.config),
    )


def verification_page(folder: Path) -> Path:
    """Where the report on the verification sets of a run is."""
    return folder / "verification" / "report.html"
