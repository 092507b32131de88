"""Whether data, batch and network of a run go together, before it and while it trains."""

import torch
from torch import nn

from kappaface_dist.backbones.layers import BATCH_NORMS
from kappaface_dist.config.keys import Config
from kappaface_dist.data.loading.loader import Loader
from kappaface_dist.parallel import ranks as parallel


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


def check_corrupt_share(loader: Loader, limit: float) -> None:
    """Raise ValueError where more than this share of all images is unreadable; collective."""
    counts = torch.tensor([loader.num_corrupt, loader.num_read], dtype=torch.float64)
    corrupt, read = parallel.all_reduce_sum(counts).tolist()
    if corrupt > limit * read:
        raise ValueError(
            f"{corrupt:.0f} of {read:.0f} images could not be decoded, more than"
            f" data.max_corrupt_share ({limit:.1%}): check the record, or raise the share"
        )
