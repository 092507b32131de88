"""The data of a run; whether it, batch and network go together, before it and while it trains."""

from collections.abc import Mapping

import torch
from torch import nn

from kappaface_dist.backbones.layers import BATCH_NORMS
from kappaface_dist.config.datasets import class_maps, paths
from kappaface_dist.config.keys import Config
from kappaface_dist.data.loading.together import Together
from kappaface_dist.data.sources.catalog import Catalog, check_trainable, open_catalog
from kappaface_dist.data.sources.finding import find_sources
from kappaface_dist.data.sources.label_vectors import with_all_labels
from kappaface_dist.data.sources.merged import merge_catalogs
from kappaface_dist.data.sources.remote_store import CacheSettings, is_remote, masked
from kappaface_dist.parallel import ranks as parallel


def open_data(config: Config) -> Catalog:
    """Open data.train of one of `datasets`, or those that data.merge makes one; collective.

    Raises:
        ValueError: it is missing or damaged, or there is nothing to tell apart.
        RuntimeError: it cannot be had.
    """
    parts = {name: _open(config, path) for name, path in paths(config).items()}
    catalog = parallel.agree(lambda: as_one(config, parts))
    name = masked(", ".join(map(str, paths(config).values())))
    check_trainable(catalog, name, parallel.world_size())
    return catalog


def open_here(config: Config, train: str | list[str] | None = None) -> Catalog:
    """The same in this process alone, of files that lie elsewhere by now if train says where.

    Raises:
        ValueError, RuntimeError: as `open_data`.
    """
    cache = CacheSettings(config.data.cache, config.data.cache_gigabytes)
    places = paths(config) if train is None else {"": train}
    parts = {
        name: open_catalog(
            place,
            any_labels=_has_several_labels(config),
            cache=cache,
            block=config.data.block_shuffle,
        )
        for name, place in places.items()
    }
    return as_one(config, parts)


def as_one(config: Config, parts: Mapping[str, Catalog]) -> Catalog:
    """One dataset of its parts by name, with the labels that the run takes.

    Raises:
        ValueError: a map of data.merge or the labels are not what is expected.
    """
    if _has_several_labels(config):
        parts = {n: with_all_labels(part, config.data.labels) for n, part in parts.items()}
    return merge_catalogs(parts, class_maps(config) if len(parts) > 1 else [])


def _has_several_labels(config: Config) -> bool:
    return config.data.labels != "first"


def _open(config: Config, train: str | list[str]) -> Catalog:
    any_labels = _has_several_labels(config)
    if any(is_remote(item) for item in ([train] if isinstance(train, str) else train)):
        # One rank asks what is there, and all bring it: none waits for hours for another.
        found = parallel.agree(lambda: find_sources(train) if parallel.rank() == 0 else None)
        parts = parallel.gather_objects(found)[0]
        cache = CacheSettings(config.data.cache, config.data.cache_gigabytes)
        return parallel.agree(
            lambda: open_catalog(
                train,
                any_labels=any_labels,
                cache=cache,
                block=config.data.block_shuffle,
                found=parts,
            )
        )
    return parallel.rank0_first(lambda: open_catalog(train, any_labels=any_labels))


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
