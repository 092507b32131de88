"""How large a job is; of one with several datasets, each of them as a job of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kappaface_dist.config.datasets import datasets
from kappaface_dist.config.keys import Config

# The field's sets have about so many.
IMAGES_PER_CLASS = 40


@dataclass(frozen=True)
class JobSize:
    """Attributes:
    num_classes: C, of all ranks and datasets.
    num_images: of all datasets.
    num_ranks: N.
    of_datasets: (classes, images) of each of several.
    labels_per_image: that the head sees each image with (data.labels: mean).
    """

    num_classes: int
    num_images: int
    num_ranks: int
    of_datasets: tuple[tuple[int, int], ...] = ()
    labels_per_image: int = 1

    @property
    def classes_of_each(self) -> list[int]:
        """C of each dataset."""
        return [classes for classes, _ in self.of_datasets] or [self.num_classes]

    @property
    def classes_per_rank(self) -> int:
        """K of the largest shard."""
        return sum(-(-classes // self.num_ranks) for classes in self.classes_of_each)


def size_of_datasets(of_datasets: list[tuple[int, int]], num_ranks: int) -> JobSize:
    """Of a job with datasets of so many (classes, images)."""
    classes, images = (sum(numbers) for numbers in zip(*of_datasets, strict=True))
    return JobSize(classes, images, num_ranks, tuple(of_datasets))


def size_given(
    config: Config, classes: Sequence[int], images: Sequence[int] | None, num_ranks: int
) -> JobSize:
    """Of so many classes and images of each dataset, in their order; images None: about so many.

    Raises:
        ValueError: there are more or fewer datasets.
    """
    names = list(datasets(config))
    images = images or [IMAGES_PER_CLASS * number for number in classes]
    for option, given in (("--classes", classes), ("--images", images)):
        if len(given) != len(names):
            raise ValueError(
                f"{option} is given {len(given)} times for {len(names)} datasets"
                f" ({', '.join(names) or 'data.train'}): give it once for each, in order"
            )
    return size_of_datasets(list(zip(classes, images, strict=True)), num_ranks)


def jobs_of(config: Config, size: JobSize) -> list[tuple[Config, JobSize]]:
    """Configuration and size of each dataset; of one dataset those of the job."""
    owns = list(datasets(config).values())
    if len(owns) == 1:
        seen = config.data.batch_size * size.labels_per_image  # by the head, of a micro-batch
        return [(replace(owns[0], data=replace(owns[0].data, batch_size=seen)), size)]
    sizes = [JobSize(*found, size.num_ranks) for found in size.of_datasets]
    return list(zip(owns, sizes, strict=True))
