"""How long a run is: in steps, or in passes over its data."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class RunLength:
    """One of steps and epochs is given.

    Attributes:
        num_images: of the dataset.
        global_batch: images per step.
    """

    steps: int | None
    epochs: float | None
    num_images: int
    global_batch: int

    def images_to_read(self, step: int, position: int) -> int:
        """Images that the run will have read at its end, when step and position are reached now."""
        if self.steps is not None:
            return position + max(self.steps - step, 0) * self.global_batch
        assert self.epochs is not None
        return math.ceil(self.epochs * self.num_images)

    def steps_left(self, step: int, position: int) -> int:
        """Steps until the end of the run; the last one may read into the next epoch."""
        left = self.images_to_read(step, position) - position
        return max(math.ceil(left / self.global_batch), 0)
