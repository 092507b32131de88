"""Makes the parts of a run from its configuration, in the order in which data flows."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.torch_version import TorchVersion

from kappaface_dist.backbones import build_backbone
from kappaface_dist.config.datasets import datasets
from kappaface_dist.config.keys import Config
from kappaface_dist.data.loading.together import Streams, Together
from kappaface_dist.data.sources.catalog import Catalog
from kappaface_dist.evaluation.sets.pair_file import PairFile, read_pairs
from kappaface_dist.head import Heads, PartialFC
from kappaface_dist.head.heads import heads_by_name
from kappaface_dist.models.export import load_backbone
from kappaface_dist.models.published import load_published
from kappaface_dist.models.saved_model import backbone_settings
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.data_parallel import with_sync_batchnorm, wrap_backbone
from kappaface_dist.training.distillation import Distiller, build_distiller
from kappaface_dist.training.encoder import momentum_encoder
from kappaface_dist.training.fit import check_batch, open_data
from kappaface_dist.training.heads import DTYPES, build_heads
from kappaface_dist.training.loaders import new_loader
from kappaface_dist.training.optim import build_optimizer, scaled_lr
from kappaface_dist.training.problem import Problem, describe_problem
from kappaface_dist.training.run_length import RunLength
from kappaface_dist.training.teacher_cache import check_teacher, open_cache


@dataclass(kw_only=True)
class Learner:
    """What a training step needs, and changes.

    Attributes:
        distiller: the teacher, where there is one.
        head: of one dataset, or those of several.
        network: the bare backbone; `backbone` is the same behind DDP, where there is a group.
        encoder: whose embeddings the class statistics take, if not the network's own.
        global_batch: images per optimizer step: of all ranks and micro-batches.
    """

    config: Config
    device: torch.device
    network: nn.Module
    backbone: nn.Module
    head: PartialFC | Heads
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    encoder: nn.Module | None
    global_batch: int
    distiller: Distiller | None = None


@dataclass(kw_only=True)
class Job(Learner):
    """The parts of a run: what learns, its data, and what of both its checkpoints keep.

    Attributes:
        catalogs: the datasets by name, "" of one without.
        streams: how far each has been read.
    """

    catalogs: dict[str, Catalog]
    pair_sets: dict[str, PairFile]
    loader: Together
    streams: Streams
    problem: Problem

    @property
    def num_images(self) -> int:
        """Of all datasets; an epoch of the run is as many."""
        return sum(catalog.num_images for catalog in self.catalogs.values())

    @property
    def length(self) -> RunLength:
        run = self.config.run
        return RunLength(run.steps, run.epochs, self.num_images, self.global_batch)

    def epochs(self, position: int) -> dict[str, int]:
        """In which of its own epochs each dataset is, when all have read so many images."""
        places = self.streams.at(position)
        return {name: places[name] // one.num_images for name, one in self.catalogs.items()}


def build_job(config: Config, device: torch.device) -> Job:
    """Build everything; collective.

    Raises:
        ValueError: the data is missing or damaged, or the configuration does not fit it.
    """
    catalogs = {name: open_data(own) for name, own in datasets(config).items()}
    sets = parallel.agree(lambda: {n: read_pairs(path) for n, path in config.evaluate.sets.items()})
    rows = open_cache(config, catalogs)
    loader = new_loader(config, catalogs, device, rows)
    counts = {name: catalog.count_C for name, catalog in catalogs.items()}
    learner = build_learner(config, counts, device)
    check_batch(config, learner.network)
    problem = describe_problem(config, catalogs)
    if learner.distiller is not None:  # wherever its file lies
        problem["distill.model"] = f"the weights {learner.distiller.facts['digest'][:16]}"
        if rows is not None:
            check_teacher(config, rows, learner.distiller.facts["digest"])
    return Job(
        **vars(learner),
        catalogs=catalogs,
        pair_sets=sets,
        loader=loader,
        streams=loader.streams,
        problem=problem,
    )


def build_learner(
    config: Config, count_C: np.ndarray | Mapping[str, np.ndarray], device: torch.device
) -> Learner:
    """Backbone, head and their optimizer, for classes of count_C images, of each dataset."""
    network = build_network(config, device)
    head = build_heads(config, count_C, device)
    margins = [one.margin for one in heads_by_name(head).values()]
    encoders = (momentum_encoder(network, margin) for margin in margins)
    return Learner(
        config=config,
        device=device,
        network=network,
        backbone=wrap_for_training(config, network),
        head=head,
        optimizer=new_optimizer(config, network),
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "fp16"),
        encoder=next((encoder for encoder in encoders if encoder is not None), None),
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
    config: Config,
    network: nn.Module,
    implementation: str | None = None,
    foreach: bool | None = None,
) -> torch.optim.Optimizer:
    """The backbone's optimizer; implementation stands in place of the configuration's, foreach in
    place of what suits the device.
    """
    section = config.optimizer
    return build_optimizer(
        section.name,
        network,
        lr=peak_lr(config),
        momentum=section.momentum,
        weight_decay=section.weight_decay,
        implementation=implementation or section.implementation,
        foreach=foreach,
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
