"""Batches of several datasets together, each with a stream of its own.

Shapes: B images on this rank, of all datasets.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from kappaface_dist.data.loading.loader import Batch, Loader


@dataclass
class Streams:
    """Where each dataset's stream is, when all ranks have read `position` images of them together.

    Attributes:
        counts: images of each in a micro-batch of a rank.
        origin: a position, from which on counts has been so; origins: each stream's there.
    """

    counts: Mapping[str, int]
    origin: int = 0
    origins: Mapping[str, int] = field(default_factory=dict)

    def at(self, position: int) -> dict[str, int]:
        """Each stream's own position."""
        whole, read = sum(self.counts.values()), position - self.origin
        return {
            name: self.origins.get(name, 0) + read * count // whole
            for name, count in self.counts.items()
        }

    def go_on(self, position: int, origins: Mapping[str, int]) -> None:
        """Let counts be so from position on, where the streams are at origins."""
        self.origin, self.origins = position, dict(origins)


class Together:
    """One loader or several as one: of a batch, the images of one stand after another's.

    Attributes:
        streams: where each is.
        num_read, num_corrupt, corrupt: of `Loader`, over all.
    """

    def __init__(self, loaders: Mapping[str, Loader], streams: Streams):
        assert loaders.keys() == streams.counts.keys()
        self.streams = streams
        self._loaders = dict(loaders)

    @property
    def num_read(self) -> int:
        return sum(loader.num_read for loader in self._loaders.values())

    @property
    def num_corrupt(self) -> int:
        return sum(loader.num_corrupt for loader in self._loaders.values())

    @property
    def corrupt(self) -> list[tuple[str, str]]:
        return [one for loader in self._loaders.values() for one in loader.corrupt]

    def batches(self, position: int, num_steps: int) -> Iterator[Batch]:
        """As `Loader.batches`; position counts the images of all datasets."""
        places = self.streams.at(position)
        parts = [loader.batches(places[name], num_steps) for name, loader in self._loaders.items()]
        return parts[0] if len(parts) == 1 else map(_join, zip(*parts, strict=True))

    def close(self) -> None:
        """End the threads of the running iterators."""
        for loader in self._loaders.values():
            loader.close()

    def advise(self, waited: float) -> str | None:
        """The first advice that a loader has."""
        found = [loader.advise(waited) for loader in self._loaders.values()]
        return next((text for text in found if text), None)


def _join(parts: tuple[Batch, ...]) -> Batch:
    """One after another; where one alone numbers the images of a class, the others have zeros."""
    epochs = [part.epoch_B for part in parts if part.epoch_B is not None]
    slot_B = None
    if any(part.slot_B is not None for part in parts):
        slots = [
            torch.zeros_like(part.label_B, dtype=torch.int32)
            if part.slot_B is None
            else part.slot_B
            for part in parts
        ]
        slot_B = torch.cat(slots)
    return Batch(
        torch.cat([part.image_B3HW for part in parts]),
        torch.cat([part.label_B for part in parts]),
        torch.cat(epochs),
        slot_B,
    )
