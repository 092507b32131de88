"""What a run does when its loss is not finite: once, go back and leave the step out."""

import logging

from kappaface_dist.checkpoint.saver import Saver
from kappaface_dist.commands import write_json
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.build import Job
from kappaface_dist.training.loss_guard import NonFiniteLoss
from kappaface_dist.training.metrics_file import read_metrics
from kappaface_dist.training.run_state import RunState, go_back

logger = logging.getLogger(__name__)
REPORT = "non_finite.json"
REPORTED_LINES = 20


def recover(job: Job, state: RunState, saver: Saver, bad: NonFiniteLoss) -> RunState:
    """Bring the job back to its last checkpoint, from which it goes on without the bad step.

    Returns:
        The state of that checkpoint, with the bad step among those to skip.

    Raises:
        ValueError: it has happened in this run before, or there is no checkpoint yet; collective.
    """
    saver.finish()
    repeated = bool(state.skipped)
    earlier = None if repeated else go_back(job)
    if earlier is None:
        why = "a second time" if repeated else "before the first checkpoint"
        path = job.config.folder / REPORT
        if parallel.rank() == 0:
            lines = read_metrics(job.config.folder / "metrics.jsonl")
            report = {
                "error": str(bad),
                "position": bad.position,
                "skipped_positions": state.skipped,
                "last_metrics": lines[-REPORTED_LINES:],
            }
            write_json(str(path), report)
        raise ValueError(f"{bad}; this happens {why}, so the run stops: see {path}") from bad
    logger.warning("%s; going back to step %d, to skip that step", bad, earlier.step)
    earlier.skipped = [*earlier.skipped, bad.position]
    return earlier
