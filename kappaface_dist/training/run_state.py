"""How far a run is, and its way into and out of a checkpoint."""

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from kappaface_dist.checkpoint import folder as checkpoint_folder
from kappaface_dist.checkpoint import tensors as checkpoint
from kappaface_dist.checkpoint.image_rows import ImageRows, load_image_rows, named_pieces
from kappaface_dist.checkpoint.optimizer_state import make_optimizer_tensors, optimizer_tensors
from kappaface_dist.checkpoint.saver import Saver
from kappaface_dist.checkpoint.transplant import head_prefix, stored_sub_centres, take_over
from kappaface_dist.config.datasets import datasets
from kappaface_dist.config.file import to_dict
from kappaface_dist.head import PartialFC
from kappaface_dist.head.heads import heads_by_name
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.build import Job
from kappaface_dist.training.encoder import encoder_tensors
from kappaface_dist.training.problem import check_same_problem

logger = logging.getLogger(__name__)


@dataclass
class RunState:
    """The numbers of a run, the same on every rank.

    Attributes:
        step: optimizer steps done.
        position: images read by all ranks together: the place in the stream of epochs.
        seconds: spent in training steps, over all starts.
        last_loss: of the last step that was looked at.
        best: the highest value so far of the metric checkpoint.best.
        skipped: positions of the steps that are left out, since their loss was not finite.
    """

    step: int = 0
    position: int = 0
    seconds: float = 0.0
    last_loss: float = float("nan")
    best: float | None = None
    skipped: list[int] = field(default_factory=list)


def checkpoint_root(job: Job) -> Path:
    return job.config.folder / "checkpoints"


def build_saver(job: Job) -> Saver:
    """The saver of the run's checkpoints; collective."""
    section = job.config.checkpoint
    saver = Saver(
        checkpoint_root(job),
        keep=section.keep,
        best=section.best,
        asynchronous=section.asynchronous,
        host_bytes=section.host_bytes,
    )
    saver.reserve(_replicated(job) | _sharded(job) | named_pieces(_image_rows(job)))
    return saver


def save_state(saver: Saver, job: Job, state: RunState, metrics: dict[str, float]) -> None:
    """Save a checkpoint; collective.

    Args:
        metrics: of an evaluation of this very state.
    """
    counters = {name: head.counters() for name, head in heads_by_name(job.head).items()}
    places = job.streams.at(state.position)
    numbers = {
        "run": asdict(state),
        "head": counters.get("", counters),
        # Of one dataset without a name it is the run's.
        "positions": {} if "" in places else places,
        "scaler": job.scaler.state_dict(),
        # apex counts its steps beside the tensors.
        "optimizer_steps": [group.get("step") for group in job.optimizer.param_groups],
        "metrics": metrics,
        "world_size": parallel.world_size(),
        "problem": job.problem,
        "config": to_dict(job.config),
    }
    pieces = named_pieces(_image_rows(job))
    saver.save(state.step, _replicated(job), _sharded(job), _num_classes(job), numbers, pieces)


def load_state(job: Job) -> RunState:
    """Bring the job to the checkpoint that run.resume chooses; collective.

    A damaged last checkpoint is set aside, and the one before it taken.

    Returns:
        The state of that checkpoint, or that of a run's start where there is none.

    Raises:
        ValueError: the checkpoint does not exist, is damaged, or is of another model or problem.
    """
    root = checkpoint_root(job)
    if parallel.rank() == 0:
        checkpoint_folder.finish_interrupted_saves(root)
    folder = _sound_checkpoint(root, job.config.run.resume)
    if folder is not None:
        numbers = parallel.agree(lambda: checkpoint_folder.read_numbers(folder))
        _check_sub_centres(job, folder)
        check_same_problem(folder, numbers, job.problem, job.config)
        return _load(job, folder)
    heads = heads_by_name(job.head)
    for name, own in datasets(job.config).items():
        if own.head.init is not None:
            take_over(heads[name], Path(own.head.init), own.head.identity_map, name)
    return RunState()


def go_back(job: Job) -> RunState | None:
    """Bring the job back to its last checkpoint, if there is one; collective."""
    folder = _sound_checkpoint(checkpoint_root(job), "auto")
    if folder is None:
        return None
    job.head.discard()
    return _load(job, folder)


def _sound_checkpoint(root: Path, resume: str) -> Path | None:
    while True:
        parallel.barrier()
        folder = parallel.agree(lambda: checkpoint_folder.choose(root, resume))
        if folder is None:
            return None
        problems = checkpoint.verify(folder)
        if not problems:
            return folder
        if len(checkpoint_folder.complete_checkpoints(root)) < 2 or folder.parent != root:
            raise ValueError(
                f"checkpoint {folder} is damaged ({problems[0]}), and there is none before it:"
                " restore it, or delete it to start afresh"
            )
        parallel.barrier()
        if parallel.rank() == 0:
            place = checkpoint_folder.set_aside(folder)
            logger.warning(
                "checkpoint %s is damaged (%s): set aside as %s, going on from the one before",
                folder,
                problems[0],
                place.name,
            )


def _check_sub_centres(job: Job, folder: Path) -> None:
    """With another number of centres a class nothing fits, whatever run.accept_changes says."""
    shapes = parallel.agree(lambda: checkpoint.stored_shapes(folder))
    wanted = job.config.head.sub_centres
    for prefix in _prefixed(job):
        found = stored_sub_centres(shapes, prefix)
        if found not in (None, wanted):
            dominant = f", with head.init={folder} for the dominant ones" if wanted == 1 else ""
            raise ValueError(
                f"checkpoint {folder} has {found} centres a class, and head.sub_centres is"
                f" {wanted}: set it to {found}, or start in another run.folder{dominant}"
            )


def _load(job: Job, folder: Path) -> RunState:
    numbers = parallel.agree(lambda: checkpoint_folder.read_numbers(folder))
    job.optimizer.state.clear()
    parallel.agree(lambda: make_optimizer_tensors(folder, job.optimizer, job.network))
    checkpoint.load(folder, _replicated(job), _sharded(job), _num_classes(job))
    parallel.agree(lambda: load_image_rows(folder, _image_rows(job)))
    state = RunState(**numbers["run"])
    job.streams.go_on(state.position, numbers.get("positions") or {"": state.position})
    for name, head in heads_by_name(job.head).items():
        head.load_counters(numbers["head"][name] if name else numbers["head"])
    job.scaler.load_state_dict(numbers["scaler"])
    for group, step in zip(job.optimizer.param_groups, numbers["optimizer_steps"], strict=True):
        if step is not None:
            group["step"] = step
    logger.info("going on from %s with %d processes", folder, parallel.world_size())
    return state


def _replicated(job: Job) -> dict[str, torch.Tensor]:
    network = {f"backbone.{name}": tensor for name, tensor in job.network.state_dict().items()}
    head = {
        f"{prefix}{name}": tensor
        for prefix, one in _prefixed(job).items()
        for name, tensor in one.replicated_state().items()
    }
    encoder = encoder_tensors(job.encoder)
    return network | head | encoder | optimizer_tensors(job.optimizer, job.network)


def _image_rows(job: Job) -> dict[str, ImageRows]:
    found = {prefix: one.class_margins.memory for prefix, one in _prefixed(job).items()}
    return {
        f"{prefix}memory": ImageRows(memory.row_JD, memory.rows)
        for prefix, memory in found.items()
        if memory is not None
    }


def _sharded(job: Job) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}{name}": tensor
        for prefix, one in _prefixed(job).items()
        for name, tensor in one.sharded_state().items()
    }


def _num_classes(job: Job) -> dict[str, int]:
    """Of each tensor of `_sharded`."""
    return {
        f"{prefix}{name}": one.num_classes
        for prefix, one in _prefixed(job).items()
        for name in one.sharded_state()
    }


def _prefixed(job: Job) -> dict[str, PartialFC]:
    """The heads by what their tensors' names begin with: head. of one, head.DATASET. of several."""
    return {head_prefix(name): head for name, head in heads_by_name(job.head).items()}
