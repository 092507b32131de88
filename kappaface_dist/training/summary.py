"""What a finished run leaves behind: summary.json, plots, the exported backbone, a table.

Shapes: C classes, K classes of this shard.
"""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from kappaface_dist.commands import write_json
from kappaface_dist.config.file import to_dict
from kappaface_dist.config.keys import Config
from kappaface_dist.evaluation.one_to_one.pairs import PairResult
from kappaface_dist.evaluation.reports.names import one_line
from kappaface_dist.evaluation.reports.pair_set import SetReport
from kappaface_dist.head.heads import heads_by_name
from kappaface_dist.models.export import save_backbone, weights_digest
from kappaface_dist.models.metadata import learnt_facts
from kappaface_dist.models.saved_model import backbone_settings
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.build import Job
from kappaface_dist.training.head_log import ClassTable, head_numbers
from kappaface_dist.training.metrics import Reporter
from kappaface_dist.training.verification import baselines, describe_sets, write_verification

logger = logging.getLogger(__name__)
# More classes than this are thinned out evenly for the pictures.
MAX_PLOTTED_CLASSES = 100_000


def write_report(
    job: Job,
    results: dict[str, PairResult],
    *,
    steps: int,
    images_seen: int,
    seconds: float,
    loss: float,
) -> dict[str, Any]:
    """Write everything into the run folder and return the summary; collective."""
    folder = job.config.folder
    untrained, pixels = baselines(job, results)
    classes = {name: _table_of(job, name) for name in job.catalogs}  # collective
    head = head_numbers(job.head)
    num_classes = sum(catalog.num_classes for catalog in job.catalogs.values())
    export = folder / "export" / "backbone.safetensors"
    problems: list[str] = []
    described: dict[str, SetReport] = {}
    first = parallel.rank() == 0
    settings = vars(backbone_settings(job.config))
    facts = learnt_facts(
        images=job.num_images,
        identities=num_classes,
        verification={name: result.summary() for name, result in results.items()},
    )
    parallel.agree(
        lambda: save_backbone(export, job.network, **settings, facts=facts) if first else None
    )
    if first:
        # Here, since matplotlib takes a second to import and only this rank draws, once.
        from kappaface_dist.training.run_plots import draw_plots

        problems += attempt(
            "plots",
            lambda: draw_plots(folder, classes, results, step=steps),
        )
        problems += attempt(
            "intervals of the verification sets",
            lambda: described.update(describe_sets(job, results, pixels)),
        )
        if described:
            problems += attempt(
                "the report on the verification sets",
                lambda: write_verification(job, results, described, export),
            )
    summary = {
        "world_size": parallel.world_size(),
        "steps": steps,
        "images_seen": images_seen,
        "images_per_second": images_seen / seconds,
        "loss": loss,
        "classes": num_classes,
        "images": job.num_images,
        "corrupt_images": sum(parallel.gather_objects(job.loader.num_corrupt)),
        "margin": {name: head[f"margin_{name}"] for name in ("min", "mean", "max")},
        **{name: share for name, share in head.items() if name.startswith("non_dominant_share")},
        "weights_sha256": weights_digest(job.network),
        "verification": {
            name: described[name].summary() if name in described else result.summary()
            for name, result in results.items()
        },
        "baselines": {"untrained": untrained, "pixels": pixels},
        "problems": problems,
    }
    if first:
        # Last: a run with a summary is finished, and nothing of it is written again.
        write_json(str(folder / "summary.json"), summary)
    parallel.barrier()
    return summary


def attempt(name: str, write: Callable[[], object]) -> list[str]:
    """Call write(); a fault of any kind is logged and handed back as a sentence: [] for none.

    For what a finished training can do without: its weights and numbers are not to be lost to it.
    """
    try:
        write()
    except Exception as error:
        problem = f"{name} could not be written ({type(error).__name__}: {error})"
        expected = isinstance(error, (ValueError, OSError))
        logger.error("%s: the run is finished without it", problem, exc_info=not expected)
        return [problem]
    return []


def start_reporter(config: Config, step: int, steps_left: int) -> Reporter | None:
    """What reports the run from step on; None on ranks other than 0."""
    if parallel.rank() != 0:
        return None
    return Reporter(
        config.folder,
        step,
        step + steps_left,
        tensorboard=config.log.tensorboard,
        wandb=config.log.wandb,
        run_name=config.run.name,
        settings=to_dict(config),
    )


def _table_of(job: Job, name: str) -> ClassTable:
    """The classes of a dataset (evenly thinned out); on every rank. Collective."""
    head, count_C = heads_by_name(job.head)[name], job.catalogs[name].count_C
    stride = -(-head.num_classes // MAX_PLOTTED_CLASSES)
    first = -head.classes.start % stride
    kappa_K = torch.full_like(head.margins(), torch.nan)
    if head.class_margins.statistics is not None:
        kappa_K = head.class_margins.statistics.kappa_K
    own = (
        count_C[head.classes.start : head.classes.stop][first::stride],
        head.margins()[first::stride].cpu().numpy(),
        kappa_K[first::stride].cpu().numpy(),
    )
    images, margin, kappa = map(np.concatenate, zip(*parallel.gather_objects(own), strict=True))
    return ClassTable(images, margin, kappa, head.margin, int(count_C.max()))


def summary_table(summary: dict[str, Any]) -> str:
    """The results as text."""
    lines = [
        f"steps {summary['steps']}, {summary['images_seen']} images,"
        f" {summary['images_per_second']:.0f} images/s on {summary['world_size']} process(es),"
        f" last loss {summary['loss']:.3f}",
    ]
    if summary["verification"]:
        lines.append(f"{'verification set':<20}{'accuracy':>18}{'untrained':>12}{'raw pixels':>12}")
    for name, result in summary["verification"].items():
        shown = one_line(name)
        if result["accuracy"] is None:
            lines.append(f"{shown:<20} {one_line(result['note'])}")
            continue
        accuracy = f"{result['accuracy']:.2%} ± {result['accuracy_std']:.2%}"
        others = [summary["baselines"][kind][name] for kind in ("untrained", "pixels")]
        cells = "".join(f"{'-' if share is None else f'{share:.2%}':>12}" for share in others)
        lines.append(f"{shown:<20}{accuracy:>18}{cells}")
    lines += summary.get("problems", [])
    return "\n".join(lines)
