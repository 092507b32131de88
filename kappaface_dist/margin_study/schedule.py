"""All trainings of a comparison over several processes, each result written as it comes.

Shapes: P pairs.
"""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kappaface_dist.commands import deaf_to_interrupts, end_with_parent
from kappaface_dist.config.keys import Head
from kappaface_dist.evaluation.one_to_one.pairs import score_pairs
from kappaface_dist.margin_study.arms import JUDGE, REFERENCE, SOURCE, STATES, Arm
from kappaface_dist.margin_study.dataset import load_dataset
from kappaface_dist.margin_study.intervals import compare, mean_interval, verdict
from kappaface_dist.margin_study.planted_noise import Noise, count_found, labelled, write_report
from kappaface_dist.margin_study.small import images_nearby, small_pairs
from kappaface_dist.margin_study.training import Budget, embed, pair_distances, train
from kappaface_dist.whole_files import whole_file

JUDGE_SEED = 1_000_003


@dataclass(frozen=True)
class Experiment:
    """What is compared.

    Attributes:
        folder: of the results; its `data` holds the decoded dataset.
        device: where the trainings run, all of them on one.
        reference: the arm that the others are compared to.
        noise: of the labels, planted anew for each seed; None: they are trained on as they are.
    """

    folder: Path
    arms: dict[str, Arm]
    num_seeds: int
    budget: Budget
    device: str = "cpu"
    reference: str = REFERENCE
    noise: Noise | None = None

    def result(self, name: str, seed: int) -> Path:
        return self.folder / "results" / f"{name}_{seed}.npz"

    def labels(self, seed: int) -> Path:
        """The report on the planted labels of a seed, by its KappaFace arm."""
        return self.folder / "results" / f"labels_{seed}.json"


def run_experiment(
    experiment: Experiment, processes: int, progress: Callable[[str], object]
) -> int:
    """Run all trainings that have no result yet; returns their number.

    Args:
        progress: told about each finished training.

    Raises:
        RuntimeError: a training diverged, or a process was killed.
    """
    num_trained = 0
    # Fresh processes: a fork of one that has run torch's threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_begin_worker)
    try:
        pending: dict[Future[str], int | None] = {}
        with deaf_to_interrupts():  # to submit may start a process
            if not (experiment.folder / "results" / "judge.npz").is_file():
                pending[pool.submit(_judge, experiment)] = None
            for seed in range(experiment.num_seeds):
                if SOURCE not in experiment.arms or experiment.result(SOURCE, seed).is_file():
                    pending |= _controls(pool, experiment, seed)
                else:
                    pending[pool.submit(_train_arm, experiment, SOURCE, seed)] = seed
        while pending:
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                seed_or_none = pending.pop(future)
                num_trained += 1
                progress(future.result())
                if seed_or_none is not None:
                    with deaf_to_interrupts():
                        pending |= _controls(pool, experiment, seed_or_none)
        return num_trained
    except KeyboardInterrupt:
        # Trainings take minutes, and what is finished is kept.
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    end_with_parent()
    torch.set_num_threads(1)


def _controls(
    pool: ProcessPoolExecutor, experiment: Experiment, seed: int
) -> dict[Future[str], int | None]:
    """The trainings of a seed that can begin once its KappaFace is there."""
    names = [name for name in experiment.arms if name != SOURCE]
    missing = [name for name in names if not experiment.result(name, seed).is_file()]
    return {pool.submit(_train_arm, experiment, name, seed): None for name in missing}


def _train_arm(experiment: Experiment, name: str, seed: int) -> str:
    started = time.perf_counter()
    dataset = load_dataset(experiment.folder / "data")
    arm = experiment.arms[name]
    fixed: dict[str, float] = {}
    if arm.fixed_from is not None:
        source = _read(experiment.result(SOURCE, seed))
        fixed = {"classes": float(source["classes"]), "images": float(source["images"])}
    margin = arm.build(experiment.budget.scale, fixed)
    budget, device = experiment.budget, experiment.device
    if arm.lr is not None:
        budget = replace(budget, lr=arm.lr)
    kept = Head(**{name: getattr(arm, name) for name in STATES})
    if experiment.noise is not None:
        num_images = budget.epochs * len(dataset.label_I)
        report = experiment.labels(seed)
        dataset = labelled(dataset, experiment.noise, seed, arm.labels, report)
        # As many steps as with the images that were left out.
        budget = replace(budget, epochs=num_images / len(dataset.label_I))
    trained = train(dataset, margin, budget, seed, shuffled=arm.shuffled, kept=kept, device=device)
    if experiment.noise is not None and name == SOURCE:
        embedding_ID = embed(trained.network, dataset.image_IHW3, device)
        write_report(experiment.labels(seed), embedding_ID, dataset.label_I)
    unseen_MD = embed(trained.network, dataset.unseen_MHW3, device)
    seconds = time.perf_counter() - started
    _write(
        experiment.result(name, seed),
        distance_P=pair_distances(unseen_MD, dataset.pair_P2),
        loss=trained.loss,
        loss_E=trained.loss_E,
        seconds=seconds,
        **trained.margins,
    )
    return f"{name}, seed {seed}: {seconds:.0f} s"


def _judge(experiment: Experiment) -> str:
    """Train the network that tells which pairs look like small classes."""
    dataset = load_dataset(experiment.folder / "data")
    margin = JUDGE.build(experiment.budget.scale, {})
    budget, device = experiment.budget, experiment.device
    network = train(dataset, margin, budget, JUDGE_SEED, device=device).network
    unseen_MD = embed(network, dataset.unseen_MHW3, device)
    embedding_ID = embed(network, dataset.image_IHW3, device)
    _write(
        experiment.folder / "results" / "judge.npz",
        distance_P=pair_distances(unseen_MD, dataset.pair_P2),
        nearby_M=images_nearby(embedding_ID, dataset.label_I, dataset.count_C, unseen_MD),
    )
    return "the network that tells who looks like a small class"


def _write(path: Path, **arrays: Any) -> None:
    """Write a result, which appears whole or not at all."""
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **arrays)


def _read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        return dict(stored)


def collect(experiment: Experiment) -> dict[str, Any]:
    """The report of an experiment whose trainings are all done, ready for JSON."""
    dataset = load_dataset(experiment.folder / "data")
    judge = _read(experiment.folder / "results" / "judge.npz")
    small_P = small_pairs(judge["nearby_M"], dataset.pair_P2, dataset.same_P)

    def scores(distance_P: np.ndarray, mask_P: np.ndarray) -> tuple[float, float]:
        found = score_pairs(distance_P[mask_P], dataset.same_P[mask_P])
        enough = "decode_dataset lets no set pass that is too small for this"
        assert found.accuracy is not None, enough
        assert found.auc is not None, enough
        return found.accuracy, found.auc

    every_P = np.ones_like(small_P)
    arms: dict[str, dict[str, Any]] = {}
    details: dict[str, dict[str, Any]] = {}
    for name, arm in experiment.arms.items():
        results = [_read(experiment.result(name, seed)) for seed in range(experiment.num_seeds)]
        every = [scores(result["distance_P"], every_P) for result in results]
        arms[name] = {
            "all": [accuracy for accuracy, _ in every],
            "small": [scores(result["distance_P"], small_P)[0] for result in results],
            "auc": [auc for _, auc in every],
            "loss": [float(result["loss"]) for result in results],
        }
        details[name] = {
            "about": arm.about,
            "settings": arm.margin,
            "all": mean_interval(arms[name]["all"]),
            "small": mean_interval(arms[name]["small"]),
            "auc": mean_interval(arms[name]["auc"]),
            "lr": arm.lr or experiment.budget.lr,
            "mean_margin": {
                over: float(np.mean([result[over] for result in results]))
                for over in ("classes", "images")
            },
            "loss": float(np.mean([result["loss"] for result in results])),
            # [seeds, epochs]; a result of an earlier version has none
            "loss_by_epoch": [
                result["loss_E"].tolist() for result in results if "loss_E" in result
            ],
            "seconds": float(np.mean([result["seconds"] for result in results])),
        }
    paired = compare(arms, experiment.reference)
    others, planted = set(arms) - {experiment.reference}, {}
    if experiment.noise is not None and SOURCE in arms:
        reports = [experiment.labels(seed) for seed in range(experiment.num_seeds)]
        planted = count_found(dataset.label_I, experiment.noise, reports)
    nearby_P = np.log(judge["nearby_M"])[dataset.pair_P2].mean(axis=1)
    return {
        "reference": experiment.reference,
        "seeds": experiment.num_seeds,
        "arms": arms,
        "paired": paired,
        "paired_to_kappaface": compare(arms, SOURCE) if SOURCE in others else {},
        "verdict": verdict(paired, experiment.reference),
        "planted": planted,
        "details": details,
        "data": {
            "classes": len(dataset.count_C),
            "images": len(dataset.label_I),
            "images_per_class": [int(dataset.count_C.min()), int(dataset.count_C.max())],
            "pairs": len(dataset.same_P),
            "small_pairs": int(small_P.sum()),
            "images_nearby": {
                "all": float(np.exp(nearby_P.mean())),
                "small": float(np.exp(nearby_P[small_P].mean())),
            },
            "accuracy_without_margin": scores(judge["distance_P"], every_P)[0],
        },
    }
