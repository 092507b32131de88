"""The loader of a run from its configuration: one of each dataset, called as one."""

from collections.abc import Mapping

import torch

from kappaface_dist.config.datasets import datasets
from kappaface_dist.config.keys import Config
from kappaface_dist.data.loading.loader import build_loader
from kappaface_dist.data.loading.stored_rows import StoredRows
from kappaface_dist.data.loading.together import Streams, Together
from kappaface_dist.data.sources.catalog import Catalog
from kappaface_dist.parallel.cores import threads_per_rank


def new_loader(
    config: Config,
    catalogs: Mapping[str, Catalog],
    device: torch.device,
    rows: StoredRows | None = None,
) -> Together:
    """The loader of this rank; those of several datasets share its threads as they do a batch.

    Args:
        rows: a teacher's embeddings, of the one dataset.
    """
    owns = datasets(config)
    threads = config.data.num_threads
    loaders = {}
    for name, own in owns.items():
        if len(owns) > 1:
            share = own.data.batch_size / config.data.batch_size
            threads = max(1, round((config.data.num_threads or threads_per_rank()) * share))
        loaders[name] = build_loader(
            catalogs[name],
            loader=config.data.loader,
            batch_size=own.data.batch_size,
            image_size=config.data.image_size,
            augment=config.data.augment,
            num_threads=threads,
            block_shuffle=config.data.block_shuffle,
            seed=own.run.seed,
            device=device,
            with_slots=own.margin.get("source") == "memory",
            labels=config.data.labels,
            rows=rows,
        )
    return Together(loaders, Streams({name: own.data.batch_size for name, own in owns.items()}))
