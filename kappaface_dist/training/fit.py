"""The data of a run; whether it, batch and network go together, before it and while it trains."""

import torch
from torch import nn

from kappaface_dist.backbones.layers import BATCH_NORMS
from kappaface_dist.config.keys import Config
from kappaface_dist.data.loading.together import Together
from kappaface_dist.data.sources.catalog import Catalog, check_trainable, open_catalog
from kappaface_dist.data.sources.finding import find_sources
from kappaface_dist.data.sources.remote_store import CacheSettings, is_remote, masked
from kappaface_dist.parallel import ranks as parallel


def open_data(config: Config) -> Catalog:
    """Open data.train; collective.

    Raises:
        ValueError: it is missing or damaged, or there is nothing to tell apart.
        RuntimeError: it cannot be had.
    """
    train = config.data.train or []
    assert not isinstance(train, dict), "one of several datasets is opened by its own configuration"
    if any(is_remote(item) for item in ([train] if isinstance(train, str) else train)):
        # One rank asks what is there, and all bring it: none waits for hours for another.
        found = parallel.agree(lambda: find_sources(train) if parallel.rank() == 0 else None)
        parts = parallel.gather_objects(found)[0]
        cache = CacheSettings(config.data.cache, config.data.cache_gigabytes)
        catalog = parallel.agree(
            lambda: open_catalog(train, cache=cache, block=config.data.block_shuffle, found=parts)
        )
    else:
        catalog = parallel.rank0_first(lambda: open_catalog(train))
    check_trainable(catalog, masked(str(config.data.train)), parallel.world_size())
    return catalog


def check_batch(config: Config, network: nn.Module) -> None:
    """Raise ValueError where BatchNorm would see one image: a batch without a spread."""
    together = parallel.world_size() if config.backbone.sync_batchnorm else 1
    if config.data.batch_size * together > 1:
        return
    if any(isinstance(module, BATCH_NORMS) for module in network.modules()):
        raise ValueError(
            f"data.batch_size is 1, and the BatchNorm of {config.backbone.name} needs two images at"
            " least for its statistics: raise data.batch_size, or use tiny_gn, which has none"
        )


def check_corrupt_share(loader: Together, limit: float) -> None:
    """Raise ValueError where more than this share of all images is unreadable; collective."""
    counts = torch.tensor([loader.num_corrupt, loader.num_read], dtype=torch.float64)
    corrupt, read = parallel.all_reduce_sum(counts).tolist()
    if corrupt > limit * read:
        raise ValueError(
            f"{corrupt:.0f} of {read:.0f} images could not be decoded, more than"
            f" data.max_corrupt_share ({limit:.1%}): check the record, or raise the share"
        )
