"""The best accuracy of each verification set so far, for the log's lines."""

from collections.abc import Iterable, Mapping


class BestSoFar:
    """Follows the numbers of a run.

    Args:
        earlier: lines of metrics.jsonl from before this start, each with its step.
    """

    def __init__(self, earlier: Iterable[Mapping[str, float]] = ()):
        self._best: dict[str, tuple[float, int]] = {}  # accuracy/SET: its highest, and its step
        for line in earlier:
            self.note(int(line["step"]), line)

    def note(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take note of the numbers of a step; of equal ones the first stays."""
        for name, number in numbers.items():
            if name.startswith("accuracy/") and number > self._best.get(name, (-1.0, 0))[0]:
                self._best[name] = number, step

    def behind(self, numbers: Mapping[str, float]) -> str:
        """What to put behind a line about the training or an evaluation; "" for a checkpoint's."""
        if not self._best or "checkpoint_pause_seconds" in numbers:
            return ""
        found = (
            f"{name.removeprefix('accuracy/')} {value:.2%} at step {step}"
            for name, (value, step) in self._best.items()
        )
        return f"  best {', '.join(found)}"
