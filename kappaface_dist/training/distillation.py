"""Learning from a teacher's embeddings, beside the margin softmax or in its place.

Shapes: B images of a micro-batch on this rank, D embedding size, T the teacher's, H W image size.
"""

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kappaface_dist.config.keys import Config
from kappaface_dist.models.teacher import Teacher, load_teacher
from kappaface_dist.parallel import ranks as parallel

logger = logging.getLogger(__name__)


class Distiller:
    """The loss of a network against a teacher that sees the same images.

    Args:
        network: the teacher's, in eval mode; it learns nothing. None: its embeddings are kept.
        kind: "cosine", the mean of 1 - cos(embedding, teacher's); or "relation", the mean square of
            the difference of the cosines of all pairs of a rank's micro-batch (after Park et al.,
            "Relational Knowledge Distillation", CVPR 2019), for any two embedding sizes.
        half: run the teacher in bf16.
        facts: what --check says of it.
    """

    def __init__(self, network: nn.Module | None, kind: str, *, half: bool, facts: dict[str, Any]):
        self.network, self.kind, self.half, self.facts = network, kind, half, facts
        self._sums: torch.Tensor | None = None  # of losses, micro-batches, images left out

    def loss(
        self,
        embedding_BD: torch.Tensor,
        image_B3HW: torch.Tensor,
        stored_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Of a micro-batch of this rank; images whose teacher's embedding is not finite are left
        out, and counted.

        Args:
            stored_BT: the teacher's embeddings, where they are kept.
        """
        taught_BT = self._embed(image_B3HW) if stored_BT is None else stored_BT.float()
        known_B = taught_BT.isfinite().all(dim=1)
        taught_BT = F.normalize(taught_BT.where(known_B[:, None], 0.0), dim=1)
        unit_BD = F.normalize(embedding_BD.float(), dim=1)
        if self.kind == "cosine":
            each, counts = 1.0 - (unit_BD * taught_BT).sum(dim=1), known_B
        else:
            each = (unit_BD @ unit_BD.T - taught_BT @ taught_BT.T).square()
            counts = (known_B[:, None] & known_B).fill_diagonal_(False)
        loss = each.where(counts, 0.0).sum() / counts.sum().clamp(min=1)
        one = torch.ones_like(loss)
        sums = torch.stack([loss.detach(), one, (~known_B).sum().to(loss.dtype)])
        self._sums = sums if self._sums is None else self._sums + sums
        return loss

    def _embed(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        assert self.network is not None, "a batch without the teacher's embeddings"
        kind = image_B3HW.device.type
        with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=self.half):
            return self.network(image_B3HW).float()

    def take(self) -> dict[str, float]:
        """The mean loss of all ranks since the last time, without its weight. Collective."""
        sums, self._sums = self._sums, None
        if sums is None:  # the backbone was frozen
            return {}
        loss, number, left_out = parallel.all_reduce_sum(sums).tolist()
        if left_out:
            logger.warning(
                "the teacher's embeddings of %d images are not finite: nothing is learnt from them",
                left_out,
            )
        return {"distill_loss": loss / number, "distill_left_out": left_out}


def build_distiller(config: Config, device: torch.device) -> Distiller | None:
    """The teacher of a configuration, if it has one; every rank reads it.

    Raises:
        ValueError, RuntimeError, OSError: as `load_teacher`, or the two do not fit together.
    """
    section = config.distill
    if section.model is None:
        return None
    path, size = section.model, config.backbone.embedding_size
    teacher = parallel.agree(lambda: load_teacher(path, config.data.image_size))
    if section.kind == "cosine" and teacher.embedding_size != size:
        raise ValueError(
            f"distill.model {path} gives {teacher.embedding_size} numbers, and"
            f" backbone.embedding_size is {size}: make them equal, or set distill.kind=relation,"
            " which compares images instead"
        )
    half = config.precision == "bf16"
    facts = _facts(path, teacher, half)
    if section.cache is not None:
        return Distiller(None, section.kind, half=half, facts=facts | {"cache": section.cache})
    network = teacher.network.to(device).requires_grad_(False)
    if config.backbone.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Distiller(network, section.kind, half=half, facts=facts)


def _facts(path: str, teacher: Teacher, half: bool) -> dict[str, Any]:
    return {
        "model": path,
        "digest": teacher.digest,
        "backbone": "another program's" if teacher.settings is None else teacher.settings.name,
        "embedding_size": teacher.embedding_size,
        "precision": "bf16" if half else "fp32",
    }
