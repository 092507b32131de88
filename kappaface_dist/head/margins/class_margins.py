"""The margins of a shard's classes, and all that a margin remembers between steps.

Shapes: G images on all ranks, D embedding size, K classes of this shard.
"""

import math
from typing import Any

import numpy as np
import torch

from kappaface_dist.head.margins import KappaFace, Margin, MarginState
from kappaface_dist.head.margins.base import Marks
from kappaface_dist.head.margins.chosen_centres import ChosenCentres
from kappaface_dist.head.margins.concentration import ClassStatistics
from kappaface_dist.head.margins.image_memory import ImageMemory
from kappaface_dist.head.margins.image_trust import trust_for
from kappaface_dist.head.margins.psi import concentration_summary, psi
from kappaface_dist.parallel import ranks as parallel


class ClassMargins:
    """One margin per class of this shard, fixed or refreshed from the class statistics.

    Attributes:
        margin_K: the margins, fp32.
        state: the margin's small tensors, equal on all ranks.
        statistics: of the classes, where the margin follows them.
        memory: of their images, with `source: memory`.
        trust: of each image's label, where that is asked for.
        chosen: how many images were at each centre of their class, where it has several.
        num_refreshes: windows that have ended.
    """

    def __init__(
        self,
        margin: Margin,
        classes: range,
        embedding_size: int,
        images_per_class: np.ndarray | None,
        dtype: torch.dtype,
        device: torch.device,
        robust: str = "off",
        sub_centres: int = 1,
    ):
        self.margin = margin
        self.trust = trust_for(robust, margin, device)
        self.chosen: ChosenCentres | None = None
        if sub_centres > 1:
            self.chosen = ChosenCentres(len(classes), sub_centres, device)
        self.num_refreshes = 0
        self.statistics: ClassStatistics | None = None
        self.memory: ImageMemory | None = None
        if isinstance(margin, KappaFace):
            count_K = np.ones(len(classes), np.int64)
            if images_per_class is not None:
                # np.array() of a tensor asks it for a copy in a way that NumPy 2 warns of.
                count_K = np.asarray(images_per_class)[classes.start : classes.stop].copy()
            elif needing := margin.needs_counts:
                raise ValueError(
                    f"{needing}, which needs the number of images of each class: give the head"
                    " images_per_class"
                )
            self.statistics = ClassStatistics(
                torch.from_numpy(count_K),
                embedding_size,
                margin,
                device,
                counted=images_per_class is not None,
                first_class=classes.start,
            )
            if margin.source == "memory":
                assert images_per_class is not None
                first = int(np.asarray(images_per_class[: classes.start]).sum())
                self.memory = ImageMemory(count_K, embedding_size, device, first_row=first)
            self.margin_K = self._follow(self.statistics)
        else:
            self.margin_K = torch.full((len(classes),), margin.class_margin, device=device)
        # What was seen in the present step, for `end_epoch`.
        self._seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Marks]] = []
        self.state: MarginState = {
            name: torch.tensor(value, dtype=dtype, device=device)
            for name, value in margin.init_state().items()
        }

    @torch.no_grad()
    def refresh(self) -> None:
        """End a window of the class statistics: new concentrations, new margins. Collective."""
        if self.statistics is not None:
            self.statistics.refresh()
            self.num_refreshes += 1
            self.margin_K.copy_(self._follow(self.statistics))

    def _follow(self, statistics: ClassStatistics) -> torch.Tensor:
        """The margins m_c = ψ_c · m0 that follow from the statistics, fp32. Collective."""
        margin = statistics.margin
        psi_K = psi(statistics.kappa_K, statistics.count_K, margin, statistics.embedding_size)
        if self.num_refreshes == 0 and margin.first_window == "one":
            psi_K = torch.ones_like(psi_K)
        return (psi_K * margin.margin).float()

    @property
    def sees_batches(self) -> bool:
        """Whether `see` takes the training pass's embeddings; else those of a momentum encoder."""
        return not (isinstance(self.margin, KappaFace) and self.margin.source == "encoder")

    def marks(
        self,
        label_B: torch.Tensor,
        epoch_B: torch.Tensor | None,
        slot_B: torch.Tensor | None,
        *,
        learning: bool,
    ) -> Marks:
        """The marks of `see` as all ranks will exchange them; none where nobody looks at them.

        Raises:
            ValueError: images that are to be remembered have no number.
        """
        if self.statistics is None or not self.sees_batches:
            return {}
        if learning and self.memory is not None and slot_B is None:
            raise ValueError(
                "margin.source is memory, but the head was given no slot_B: hand in the number of"
                " each image in its class, or take another source"
            )
        # Without epochs too, so that all ranks exchange alike.
        nothing_B = torch.zeros_like(label_B)
        found = {"epoch": (nothing_B if epoch_B is None else epoch_B).to(torch.int8)}
        if self.memory is not None:
            found["slot"] = (nothing_B if slot_B is None else slot_B).to(torch.int32)
        return found

    def start_step(self) -> None:
        """Forget what `end_epoch` would need of the step before."""
        self._seen.clear()

    def see(
        self,
        embedding_GD: torch.Tensor,
        cosine_G: torch.Tensor,
        local_id_G: torch.Tensor,
        owned_G: torch.Tensor,
        marks: Marks,
    ) -> None:
        """Show the statistics the images of a micro-batch that belong to the present epoch.

        Args:
            embedding_GD: unit embeddings.
            cosine_G, local_id_G: of images whose class is on this rank, as owned_G says.
        """
        if self.statistics is None:
            return
        epoch_G = marks.get("epoch")
        used_G = owned_G if epoch_G is None else owned_G & (epoch_G == 0)
        shown_GD = embedding_GD
        if self.memory is not None:
            shown_GD, used_G = self.memory.renew(embedding_GD, local_id_G, marks["slot"], used_G)
        self.statistics.add(shown_GD, cosine_G, local_id_G, used_G)
        if epoch_G is not None:
            # Whether any of them is later, only the device knows: to wait for it costs more.
            self._seen.append((embedding_GD, cosine_G, local_id_G, owned_G, marks))

    def held_tensors(self) -> list[torch.Tensor]:
        """What is held of the present step until the next one begins."""
        return [tensor for *held, marks in self._seen for tensor in (*held, *marks.values())]

    def end_step(self, num_steps: int, *, encoded: bool = False) -> None:
        """Refresh if a window of `margin.refresh_steps` steps ends with this many steps done.

        Args:
            encoded: a momentum encoder's embeddings of the step have been seen.
        """
        if encoded == self.sees_batches:
            return
        window = self.margin.refresh_steps if isinstance(self.margin, KappaFace) else 0
        if window and num_steps % window == 0:
            self.refresh()

    def end_epoch(self) -> None:
        """Refresh if a window is an epoch; then show the statistics what the last step has read of
        the next one. Collective.
        """
        if self.trust is not None:
            self.trust.end_epoch()
        if self.chosen is not None:
            self.chosen.end_epoch()
        if self.statistics is None:
            return
        if not self.statistics.margin.refresh_steps:
            self.refresh()
        self.statistics.end_epoch()
        seen, self._seen = self._seen, []
        for embedding_GD, cosine_G, local_id_G, owned_G, marks in seen:
            later = marks | {"epoch": (marks["epoch"] - 1).clamp_min(-1)}
            self.see(embedding_GD, cosine_G, local_id_G, owned_G, later)

    def summary(self, num_classes: int) -> dict[str, float]:
        """Smallest, mean and largest margin over the classes of all ranks; where margins are
        refreshed, how often they were, and the numbers of `concentration_summary`. Collective.
        """
        margin_K = self.margin_K.double()
        extremes = torch.full((2,), -math.inf, dtype=torch.float64, device=margin_K.device)
        if len(margin_K):
            extremes = torch.stack([-margin_K.min(), margin_K.max()])
        parallel.all_reduce_max(extremes)
        total = parallel.all_reduce_sum(margin_K.sum().reshape(1))
        return {
            "margin_min": -extremes[0].item(),
            "margin_mean": total.item() / num_classes,
            "margin_max": extremes[1].item(),
            **self._concentrations(),
            **({} if self.trust is None else self.trust.summary()),
            **({} if self.chosen is None else self.chosen.summary()),
        }

    def _concentrations(self) -> dict[str, float]:
        if self.statistics is None:
            return {}
        found = self.statistics
        return {"margin_refreshes": self.num_refreshes} | concentration_summary(
            found.kappa_K, self.margin_K, found.count_K, found.margin, found.embedding_size
        )

    def counters(self) -> dict[str, Any]:
        """The numbers, equal on all ranks, that belong to the state beside its tensors."""
        numbers: dict[str, Any] = {"num_refreshes": self.num_refreshes}
        if self.statistics is not None:
            numbers["epoch_weights"] = list(self.statistics.epoch_weights)
            numbers["num_adds"] = self.statistics.num_adds
        return numbers | ({} if self.trust is None else {"trust": self.trust.counters()})

    def load_counters(self, counters: dict[str, Any]) -> None:
        self.num_refreshes = counters["num_refreshes"]
        self.start_step()  # what was seen belongs to another state
        if self.trust is not None:
            self.trust.load_counters(counters.get("trust"))
        if (statistics := self.statistics) is not None:
            earlier, present = counters.get("epoch_weights", statistics.most_epoch_weights())
            statistics.epoch_weights = (earlier, present)
            statistics.num_adds = counters.get("num_adds", 0)

    def sharded_state(self) -> dict[str, torch.Tensor]:
        """The live tensors with a row per class of this shard."""
        statistics = {} if self.statistics is None else self.statistics.state()
        if self.chosen is not None:
            statistics["chosen"] = self.chosen.count_KA
        return {"margin": self.margin_K} | {f"statistics.{k}": t for k, t in statistics.items()}
