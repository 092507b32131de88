"""Makes the parts of a run from its configuration, in the order in which data flows."""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.torch_version import TorchVersion

from kappaface_dist.backbones import build_backbone
from kappaface_dist.config.keys import Config
from kappaface_dist.data.loading.loader import Loader, build_loader
from kappaface_dist.data.sources.catalog import Catalog
from kappaface_dist.evaluation.sets.pair_file import PairFile, read_pairs
from kappaface_dist.head import PartialFC, build_margin
from kappaface_dist.models.export import load_backbone
from kappaface_dist.models.published import load_published
from kappaface_dist.models.saved_model import backbone_settings
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.data_parallel import with_sync_batchnorm, wrap_backbone
from kappaface_dist.training.distillation import Distiller, build_distiller
from kappaface_dist.training.encoder import momentum_encoder
from kappaface_dist.training.fit import check_batch, open_data
from kappaface_dist.training.optim import build_optimizer, build_row_optimizer, scaled_lr
from kappaface_dist.training.problem import Problem, describe_problem
from kappaface_dist.training.run_length import RunLength

logger = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(kw_only=True)
class Learner:
    """What a training step needs, and changes.

    Attributes:
        distiller: the teacher, where there is one.
        network: the bare backbone; `backbone` is the same behind DDP, where there is a group.
        encoder: whose embeddings the class statistics take, if not the network's own.
        global_batch: images per optimizer step: of all ranks and micro-batches.
    """

    config: Config
    device: torch.device
    network: nn.Module
    backbone: nn.Module
    head: PartialFC
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    encoder: nn.Module | None
    global_batch: int
    distiller: Distiller | None = None


@dataclass(kw_only=True)
class Job(Learner):
    """The parts of a run: what learns, its data, and what of both its checkpoints keep."""

    catalog: Catalog
    pair_sets: dict[str, PairFile]
    loader: Loader
    problem: Problem

    @property
    def length(self) -> RunLength:
        run = self.config.run
        return RunLength(run.steps, run.epochs, self.catalog.num_images, self.global_batch)


def build_job(config: Config, device: torch.device) -> Job:
    """Build everything; collective.

    Raises:
        ValueError: the data is missing or damaged, or the configuration does not fit it.
    """
    catalog = open_data(config)
    sets = parallel.agree(lambda: {n: read_pairs(path) for n, path in config.evaluate.sets.items()})
    loader = new_loader(config, catalog, device)
    learner = build_learner(config, catalog.count_C, device)
    check_batch(config, learner.network)
    problem = describe_problem(config, catalog)
    if learner.distiller is not None:  # wherever its file lies
        problem["distill.model"] = f"the weights {learner.distiller.facts['digest'][:16]}"
    return Job(**vars(learner), catalog=catalog, pair_sets=sets, loader=loader, problem=problem)


def build_learner(config: Config, count_C: np.ndarray, device: torch.device) -> Learner:
    """Backbone, head and their optimizer, for classes of count_C images."""
    network = build_network(config, device)
    head = build_head(config, count_C, device)
    return Learner(
        config=config,
        device=device,
        network=network,
        backbone=wrap_for_training(config, network),
        head=head,
        optimizer=new_optimizer(config, network),
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "fp16"),
        encoder=momentum_encoder(network, head.margin),
        global_batch=global_batch(config),
        distiller=build_distiller(config, device),
    )


def global_batch(config: Config) -> int:
    """Images per optimizer step: of all ranks and micro-batches."""
    return config.data.batch_size * parallel.world_size() * config.optimizer.accumulate


def peak_lr(config: Config) -> float:
    """The learning rate that the schedule multiplies."""
    return scaled_lr(config.optimizer.lr, global_batch(config), config.optimizer.reference_batch)


def new_optimizer(
    config: Config, network: nn.Module, implementation: str | None = None
) -> torch.optim.Optimizer:
    """The backbone's optimizer; implementation stands in place of the configuration's."""
    section = config.optimizer
    return build_optimizer(
        section.name,
        network,
        lr=peak_lr(config),
        momentum=section.momentum,
        weight_decay=section.weight_decay,
        implementation=implementation or section.implementation,
    )


def new_loader(config: Config, catalog: Catalog, device: torch.device) -> Loader:
    """The loader of this rank."""
    return build_loader(
        catalog,
        loader=config.data.loader,
        batch_size=config.data.batch_size,
        image_size=config.data.image_size,
        augment=config.data.augment,
        num_threads=config.data.num_threads,
        block_shuffle=config.data.block_shuffle,
        seed=config.run.seed,
        device=device,
        with_slots=config.margin.get("source") == "memory",
    )


def build_network(config: Config, device: torch.device, *, initial: bool = False) -> nn.Module:
    """The backbone with its first weights: those of backbone.init, or random ones.

    Args:
        initial: ignore backbone.init; for the untrained baseline.
    """
    torch.manual_seed(config.run.seed)
    section = config.backbone
    network = new_network(config)
    if (path := section.init) is not None and not initial:
        if path.endswith((".pth", ".pt")):
            parallel.agree(lambda: load_published(path, network))
        else:
            start, settings = parallel.agree(lambda: load_backbone(path))
            if settings != (wanted := backbone_settings(config)):
                raise ValueError(
                    f"backbone.init {path} holds {settings}, the configuration wants {wanted}:"
                    " make them equal"
                )
            network.load_state_dict(start.state_dict())
    if section.sync_batchnorm:
        network = with_sync_batchnorm(network, device)
    if section.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.to(device)


def new_network(config: Config) -> nn.Module:
    """The backbone with random weights."""
    section = config.backbone
    return build_backbone(
        section.name,
        embedding_size=section.embedding_size,
        image_size=config.data.image_size,
        checkpointing=section.checkpointing,
        depths=section.depths,
        widths=section.widths,
        drop_path=section.drop_path,
        dropout=section.dropout,
        mask_ratio=section.mask_ratio,
    )


def wrap_for_training(config: Config, network: nn.Module) -> nn.Module:
    """What training calls instead of the network.

    Raises:
        RuntimeError: this torch cannot do what is asked for.
    """
    section = config.backbone
    if section.compile and section.checkpointing and TorchVersion(torch.__version__) < "2.9":
        raise RuntimeError(
            f"backbone.compile and backbone.checkpointing are on, and torch {torch.__version__}"
            " then counts every batch twice in BatchNorm's running statistics: update to torch 2.9,"
            " or turn one of them off"
        )
    return wrap_backbone(
        network,
        compiled=section.compile,
        gradient_dtype=DTYPES[section.gradient_dtype],
        static_graph=section.static_graph,
        bucket_megabytes=section.bucket_megabytes,
    )


def build_head(config: Config, count_C: np.ndarray, device: torch.device) -> PartialFC:
    """The sharded head for classes of count_C images."""
    if config.head.fused is True:
        logger.info("head.fused is true, which means auto now; false means off")
    return PartialFC(
        len(count_C),
        config.backbone.embedding_size,
        build_margin(**config.margin),
        images_per_class=count_C,
        sample_rate=config.head.sample_rate_in(0),
        optimizer=build_row_optimizer(
            config.optimizer.name,
            momentum=config.optimizer.momentum,
            weight_decay=config.optimizer.weight_decay,
            momentum_dtype=DTYPES.get(config.head.momentum_dtype),  # none is in no table
            square_by_row=config.head.second_moment == "row",
        ),
        dtype=DTYPES[config.head.dtype],
        centre_dtype=DTYPES[config.head.centre_dtype],
        logit_cache_bytes=config.head.logit_cache_bytes,
        filter_threshold=config.head.filter_threshold,
        skip_mass=config.head.skip_mass,
        fused=config.head.fused,
        seed=config.run.seed,
        device=device,
    )
