"""How far a run is, and its way into and out of a checkpoint."""

import logging
from dataclasses import asdict, dataclass

import torch

from kappaface_dist import checkpoint, parallel
from kappaface_dist.build import Job

logger = logging.getLogger(__name__)


@dataclass
class RunState:
    """The numbers of a run, the same on every rank.

    Attributes:
        step: optimizer steps done.
        position: images read by all ranks together: the place in the stream of epochs.
        seconds: spent in training steps, over all starts.
        last_loss: of the last step that was looked at.
    """

    step: int = 0
    position: int = 0
    seconds: float = 0.0
    last_loss: float = float("nan")


def save_state(job: Job, state: RunState) -> None:
    """Write a checkpoint, then delete those that are not to be kept; collective."""
    numbers = {
        "run": asdict(state),
        "head": job.head.counters(),
        "scaler": job.scaler.state_dict(),
    }
    root = job.config.folder / "checkpoints"
    checkpoint.save(
        checkpoint.step_folder(root, state.step),
        _replicated(job),
        _sharded(job),
        job.head.num_classes,
        numbers,
    )
    checkpoint.delete_old(root, job.config.checkpoint.keep)


def load_state(job: Job) -> RunState:
    """Bring the job back to the checkpoint that run.resume chooses; collective.

    Returns:
        The state of that checkpoint, or that of a run's start where there is none.

    Raises:
        ValueError: the checkpoint does not exist, is damaged, or is of another model.
    """
    root = job.config.folder / "checkpoints"
    folder = parallel.agree(lambda: checkpoint.choose(root, job.config.run.resume))
    if folder is None:
        return RunState()
    numbers = parallel.agree(lambda: checkpoint.load_numbers(folder))
    parallel.agree(lambda: checkpoint.make_optimizer_tensors(folder, job.optimizer, job.network))
    checkpoint.load(folder, _replicated(job), _sharded(job), job.head.num_classes)
    job.head.load_counters(numbers["head"])
    job.scaler.load_state_dict(numbers["scaler"])
    logger.info("going on from %s", folder)
    return RunState(**numbers["run"])


def _replicated(job: Job) -> dict[str, torch.Tensor]:
    network = {f"backbone.{name}": tensor for name, tensor in job.network.state_dict().items()}
    head = {f"head.{name}": tensor for name, tensor in job.head.replicated_state().items()}
    return network | head | checkpoint.optimizer_tensors(job.optimizer, job.network)


def _sharded(job: Job) -> dict[str, torch.Tensor]:
    return {f"head.{name}": tensor for name, tensor in job.head.sharded_state().items()}
