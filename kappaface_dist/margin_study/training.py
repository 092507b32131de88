"""One training of the comparison, with the parts of a real run.

Shapes: B images of a batch, D embedding size, H W image size, I training images, C classes,
M images of unseen people, P pairs, E epochs.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from kappaface_dist.backbones import build_backbone
from kappaface_dist.config.keys import Backbone, Config, Data, Head, Optimizer, Run
from kappaface_dist.data.loading.augment import draw_changes
from kappaface_dist.data.loading.loader import Batch
from kappaface_dist.data.loading.numbering import numbers_in_class
from kappaface_dist.data.loading.sampler import Shuffle
from kappaface_dist.data.normalisation import normalise
from kappaface_dist.evaluation.embedding.embed import eval_mode, sum_over_flips
from kappaface_dist.head import Margin, PartialFC
from kappaface_dist.margin_study.dataset import StudyImages
from kappaface_dist.training.build import Learner, build_network, new_optimizer
from kappaface_dist.training.encoder import momentum_encoder
from kappaface_dist.training.heads import DTYPES
from kappaface_dist.training.optim import build_row_optimizer, schedule_factor
from kappaface_dist.training.step import train_step

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
WARMUP_EPOCHS = 1.0
CLIP_NORM = 5.0


@dataclass(frozen=True)
class Budget:
    """What every arm gets alike."""

    backbone: str = "tiny"
    embedding_size: int = 128
    image_size: int = 56
    batch_size: int = 64
    epochs: float = 12.0
    lr: float = 0.1
    scale: float = 32.0


def check_budget(budget: Budget) -> None:
    """Raise ValueError for a budget that nothing can be trained with."""
    build_backbone(
        budget.backbone, embedding_size=budget.embedding_size, image_size=budget.image_size
    )
    # Batch normalisation has no variance of a single image.
    for name, low, high in (
        ("image_size", 16, 1024),
        ("batch_size", 2, 65536),
        ("epochs", 0.0, math.inf),
        ("lr", 0.0, math.inf),
        ("scale", 0.0, math.inf),
    ):
        value = getattr(budget, name)
        if not low <= value < high or value == 0:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} is {value}, expected {low or 'above 0'} to {high}")


@dataclass(frozen=True)
class Trained:
    """What one training gives.

    Attributes:
        margins: mean of ψ·m0 over the training, over "classes" and over "images"; radians.
        loss: mean over the last tenth of the steps.
        loss_E: mean over the steps that begin in each epoch.
    """

    network: nn.Module
    margins: dict[str, float]
    loss: float
    loss_E: np.ndarray


@torch.no_grad()
def deal_margins(head: PartialFC, seed: int) -> None:
    """Deal the head's margins out to the classes at random, another way after each refresh.

    They stay so until the next refresh, which computes them anew from the class statistics.
    """
    margin_K = head.margins()
    rng = np.random.default_rng([seed, head.counters()["num_refreshes"]])
    order_K = torch.from_numpy(rng.permutation(len(margin_K)))
    margin_K.copy_(margin_K[order_K.to(margin_K.device)])


def train(
    dataset: StudyImages,
    margin: Margin,
    budget: Budget,
    seed: int,
    *,
    shuffled: bool = False,
    kept: Head | None = None,
    device: str = "cpu",
) -> Trained:
    """Train one network; the seed decides its first weights and the order of the images.

    Args:
        shuffled: each margin is at another class, dealt out anew after each refresh.
        kept: centre_dtype, momentum_dtype, robust and sub_centres of the head.

    Raises:
        RuntimeError: the loss is not finite.
    """
    learner = build_learner(dataset.count_C, margin, budget, seed, kept or Head(), device)
    head = learner.head
    assert isinstance(head, PartialFC)
    num_dealt: int | None = None
    num_images = len(dataset.label_I)
    total = math.ceil(budget.epochs * num_images)
    shuffle, slot_I = Shuffle(num_images, seed), numbers_in_class(dataset.label_I)
    share_C = torch.from_numpy(dataset.count_C / num_images).float().to(device)
    losses, epochs, by_class, by_image = [], [], [], []
    position = 0
    while position < total:
        lr = budget.lr * schedule_factor(
            "cosine", position, total, min(WARMUP_EPOCHS, budget.epochs / 4) * num_images, 1.0
        )
        num_refreshes = head.counters()["num_refreshes"]
        if shuffled and num_refreshes != num_dealt:
            deal_margins(head, seed)
            num_dealt = num_refreshes
        by_class.append(head.margins().mean())
        by_image.append(head.margins() @ share_C)
        batch = _batch(dataset, slot_I, shuffle, position, budget.batch_size, device)
        epoch = position // num_images
        losses.append(train_step(learner, [batch], lr, position, epoch=epoch))
        epochs.append(epoch)
        position += budget.batch_size
        for _ in range(epoch, position // num_images):
            head.end_epoch()
    last = torch.stack(losses[-max(1, len(losses) // 10) :]).mean().item()
    if not math.isfinite(last):
        raise RuntimeError(f"the loss of seed {seed} is not finite: choose a lower --lr")
    means = {
        "classes": torch.stack(by_class).mean().item(),
        "images": torch.stack(by_image).mean().item(),
    }
    sum_E = np.bincount(epochs, torch.stack(losses).double().numpy(force=True))
    return Trained(learner.network, means, last, sum_E / np.bincount(epochs))


def build_learner(
    count_C: np.ndarray, margin: Margin, budget: Budget, seed: int, kept: Head, device: str
) -> Learner:
    """What a run's own step trains, for one arm and seed."""
    config = Config(
        run=Run(seed=seed),
        backbone=Backbone(
            name=budget.backbone, embedding_size=budget.embedding_size, channels_last=True
        ),
        data=Data(batch_size=budget.batch_size, image_size=budget.image_size),
        head=kept,
        optimizer=Optimizer(
            lr=budget.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, clip_norm=CLIP_NORM
        ),
    )
    place = torch.device(device)
    network = build_network(config, place)
    head = PartialFC(
        len(count_C),
        budget.embedding_size,
        margin,
        images_per_class=np.array(count_C),
        optimizer=build_row_optimizer(
            "sgd",
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            momentum_dtype=DTYPES.get(kept.momentum_dtype),  # none is in no table
        ),
        centre_dtype=DTYPES[kept.centre_dtype],
        robust=kept.robust,
        sub_centres=kept.sub_centres,
        seed=seed,
        device=place,
    )
    return Learner(
        config=config,
        device=place,
        network=network,
        backbone=network,
        head=head,
        optimizer=new_optimizer(config, network),
        scaler=torch.amp.GradScaler(place.type, enabled=False),
        encoder=momentum_encoder(network, margin),
        global_batch=budget.batch_size,
    )


def _batch(
    dataset: StudyImages,
    slot_I: np.ndarray,
    shuffle: Shuffle,
    position: int,
    batch_size: int,
    device: str,
) -> Batch:
    index_B = shuffle.indices(position, batch_size)
    position_B = np.arange(position, position + batch_size)
    flip_B = draw_changes("flip", shuffle.seed, position_B).flip_B
    image_BHW3 = dataset.image_IHW3[index_B]
    image_BHW3[flip_B] = image_BHW3[flip_B, :, ::-1]
    label_B = torch.from_numpy(dataset.label_I[index_B]).to(device)
    epoch_B = torch.from_numpy(position_B // len(dataset.label_I)).to(device)
    image_B3HW = normalise(torch.from_numpy(image_BHW3).to(device))
    return Batch(image_B3HW, label_B, epoch_B, torch.from_numpy(slot_I[index_B]).to(device))


def embed(network: nn.Module, image_MHW3: np.ndarray, device: str) -> np.ndarray:
    """Unit embeddings, float64 [M, D], of images and their mirror images together."""
    parts = []
    with eval_mode(network), torch.no_grad():
        for first in range(0, len(image_MHW3), 128):
            pixels = list(np.array(image_MHW3[first : first + 128]))
            sums_BD = sum_over_flips(network, pixels, torch.device(device))
            parts.append(nn.functional.normalize(sums_BD, dim=1).cpu().numpy())
    return np.concatenate(parts)


def pair_distances(unseen_MD: np.ndarray, pair_P2: np.ndarray) -> np.ndarray:
    """Squared distance of the two embeddings of each pair."""
    difference_PD = unseen_MD[pair_P2[:, 0]] - unseen_MD[pair_P2[:, 1]]
    return np.square(difference_PD).sum(axis=1)
