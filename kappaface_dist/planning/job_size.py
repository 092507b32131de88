"""How large a job is; of one with several datasets, each of them as a job of its own."""

from dataclasses import dataclass, replace

from kappaface_dist.config.datasets import datasets
from kappaface_dist.config.keys import Config


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
    def classes_per_rank(self) -> int:
        """K of the largest shard."""
        return sum(
            -(-num_classes // self.num_ranks)
            for num_classes, _ in self.of_datasets or [(self.num_classes, 0)]
        )


def size_of_datasets(of_datasets: list[tuple[int, int]], num_ranks: int) -> JobSize:
    """Of a job with datasets of so many (classes, images)."""
    classes, images = (sum(numbers) for numbers in zip(*of_datasets, strict=True))
    return JobSize(classes, images, num_ranks, tuple(of_datasets))


def jobs_of(config: Config, size: JobSize) -> list[tuple[Config, JobSize]]:
    """Configuration and size of each dataset; of one dataset those of the job."""
    owns = list(datasets(config).values())
    if len(owns) == 1:
        seen = config.data.batch_size * size.labels_per_image  # by the head, of a micro-batch
        return [(replace(owns[0], data=replace(owns[0].data, batch_size=seen)), size)]
    sizes = [JobSize(*found, size.num_ranks) for found in size.of_datasets]
    return list(zip(owns, sizes, strict=True))
