"""A profile of some training steps: a trace to look at, and one page to read."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.step import PHASES

logger = logging.getLogger(__name__)

STEP = "training_step"
NUM_OPERATORS = 20
# Each lets the host wait for the device, or is how a number gets from one to the other.
HOST_SYNCS = (
    "cudaDeviceSynchronize",
    "cudaStreamSynchronize",
    "cudaEventSynchronize",
    "aten::_local_scalar_dense",
    "aten::nonzero",
)


class StepProfiler:
    """Profiles rank 0 from step `steps[0]` up to, but not with, step `steps[1]`; or nothing.

    Writes folder/profile/trace.json.gz (for chrome://tracing or Perfetto) and summary.txt.
    """

    def __init__(self, folder: Path, steps: list[int] | None):
        self._folder = folder / "profile"
        self._steps = range(*steps) if steps and parallel.rank() == 0 else range(0)
        self._profile: profile | None = None
        self._num_steps = 0

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around each step of the run."""
        if number in self._steps and self._profile is None:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities)
            self._profile.start()
        if self._profile is None:
            yield
            return
        with record_function(STEP):
            yield
        self._num_steps += 1
        if number + 1 >= self._steps.stop:
            self.close()

    def close(self) -> None:
        """End a profile that is running, and write what there is of it."""
        if self._profile is None:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._profile.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self._folder / "trace.json.gz"))
        text = summary_page(self._profile, self._num_steps)
        (self._folder / "summary.txt").write_text(text, encoding="utf-8")
        logger.info("profile of %d steps in %s", self._num_steps, self._folder)
        self._profile = None


def summary_page(profiled: profile, num_steps: int) -> str:
    """Where the time of the steps went: parts, waits, operators."""
    events = {event.key: event for event in profiled.key_averages()}
    per_step = events[STEP].cpu_time_total / num_steps / 1e3
    lines = [f"{num_steps} steps of {per_step:.2f} ms", "", "parts of a step, host time:"]
    parts = ("data_wait", *PHASES)
    for name in parts:
        milliseconds = events[name].cpu_time_total / num_steps / 1e3 if name in events else 0.0
        lines.append(f"  {name:20}{milliseconds:>10.2f} ms{milliseconds / per_step:>8.1%}")
    lines += ["", "host waits for the device, per step:"]
    for name in HOST_SYNCS:
        count = events[name].count / num_steps if name in events else 0.0
        lines.append(f"  {name:30}{count:>8.1f}")
    on_gpu = torch.cuda.is_available()
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    lines += ["", f"operators with the most time ({order}):"]
    operators = [event for event in events.values() if event.key not in (STEP, *parts)]
    operators.sort(key=lambda event: getattr(event, order), reverse=True)
    for event in operators[:NUM_OPERATORS]:
        milliseconds = getattr(event, order) / num_steps / 1e3
        calls = event.count / num_steps
        lines.append(
            f"  {event.key[:56]:58}{milliseconds:>9.3f} ms{milliseconds / per_step:>8.1%}"
            f"{calls:>9.1f} calls"
        )
    return "\n".join(lines) + "\n"
