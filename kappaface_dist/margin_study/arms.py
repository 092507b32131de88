"""The arms of the comparison: KappaFace, the controls that a gain must survive, and others."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
import yaml

from kappaface_dist.head import Margin, build_margin
from kappaface_dist.head.margins.image_trust import ROBUST, trust_for

REFERENCE = "arcface"
SOURCE = "kappaface"  # its margins give the fixed-margin arms theirs
STATES: dict[str, Sequence[Any]] = {
    "centre_dtype": ("fp32", "bf16"),
    "momentum_dtype": ("fp32", "bf16", "none"),
    "robust": ROBUST[1:],
    "sub_centres": range(1, 101),
}


@dataclass(frozen=True)
class Arm:
    """One margin of the comparison.

    Attributes:
        about: a line for reports.
        margin: name and settings of the margin; the scale comes with the budget.
        fixed_from: the margin is the mean, over the training of the KappaFace arm of the same seed,
            of ψ·m0 over its classes ("classes") or over its training images ("images").
        shuffled: the margins are dealt out anew to the classes at random after each refresh.
        lr: peak learning rate of this arm; None: the budget's.
        centre_dtype, momentum_dtype, robust, sub_centres: of the head, as in configurations.
        labels: where wrong ones are planted (`planted_noise.py`): "given", "cleaned" or "truth".
    """

    about: str
    margin: dict[str, Any] = field(default_factory=lambda: {"name": "kappaface"})
    fixed_from: str | None = None
    shuffled: bool = False
    lr: float | None = None
    centre_dtype: str = "fp32"
    momentum_dtype: str = "fp32"
    robust: str = "off"
    sub_centres: int = 1
    labels: str = "given"

    def build(self, scale: float, fixed: dict[str, float]) -> Margin:
        """The margin; `fixed` has the mean margins that `fixed_from` names."""
        settings = dict(self.margin)
        if self.fixed_from is not None:
            settings["margin"] = fixed[self.fixed_from]
        return build_margin(**{"scale": scale, **settings})


# As in configs/margins/kappaface_released.yaml.
RELEASED = {
    "name": "kappaface",
    "estimator": "released",
    "standardise": "released",
    "max_resultant": 0.99999,
    "first_window": "one",
    "count_scale": 1.05,
    "beyond_pi": "cosine",
}

ARMS = {
    REFERENCE: Arm(
        "one margin for all, the mean of KappaFace's over classes",
        {"name": "arcface"},
        fixed_from="classes",
    ),
    SOURCE: Arm("our default: unbiased estimate"),
    "plugin": Arm("plug-in estimate", {"name": "kappaface", "estimator": "plugin"}),
    "released": Arm("the formula of the authors' code", RELEASED),
    "released_memory": Arm("and their memory of embeddings", RELEASED | {"source": "memory"}),
    "released_encoder": Arm("and their momentum encoder", RELEASED | {"source": "encoder"}),
    "memory": Arm(
        "our estimate over a memory of embeddings", {"name": "kappaface", "source": "memory"}
    ),
    "encoder": Arm(
        "our estimate over a momentum encoder", {"name": "kappaface", "source": "encoder"}
    ),
    "shuffled": Arm("KappaFace's margins, each at another class", shuffled=True),
    "count_only": Arm("number of images alone", {"name": "kappaface", "concentration_share": 0.0}),
    "target_cosine": Arm(
        "spread around the centre", {"name": "kappaface", "statistic": "target_cosine"}
    ),
    "arcface_by_image": Arm(
        "one margin for all, the mean of KappaFace's over training images",
        {"name": "arcface"},
        fixed_from="images",
    ),
    "exact": Arm("ArcFace with the exact gradient", {"name": "arcface"}),
    "straight_through": Arm(
        "ArcFace as trainers do that apply the margin outside autograd",
        {"name": "arcface", "straight_through": True},
    ),
}
# Besides, where wrong labels are planted; what is compared is KappaFace on them as they are.
NOISE_ARMS = {
    "cleaned": Arm("without what the label report finds by KappaFace's network", labels="cleaned"),
    "truth": Arm("without all that is planted", labels="truth"),
    "robust": Arm("trust in labels, for the loss and the statistics", robust="both"),
    "robust_loss": Arm("trust in labels, for the loss", robust="loss"),
    "robust_statistics": Arm("trust in labels, for the statistics", robust="statistics"),
}
# Decides which pairs look like small classes, so it is no arm: no margin, and a seed of its own.
JUDGE = Arm("no margin", {"name": "normface"})


def parse_arm(text: str) -> tuple[str, Arm]:
    """A further arm from "NAME:key=value,key=value", settings of KappaFace unless it names another;
    lr is the arm's own learning rate; centre_dtype, momentum_dtype, robust and sub_centres are its
    head's.

    Raises:
        ValueError: it has another form, or the margin has no such setting.
    """
    name, colon, settings = text.partition(":")
    pairs = [item.partition("=") for item in settings.split(",")]
    if not name or not colon or not all(key and value for key, _, value in pairs):
        raise ValueError(f"--arm is {text!r}, expected NAME:key=value, as in cold:temperature=1.0")
    if name in ARMS | NOISE_ARMS:
        raise ValueError(f"--arm names {name!r}, which there is already: choose another name")
    try:
        values = {key: _value(value) for key, _, value in pairs}
    except yaml.YAMLError as error:
        raise ValueError(f"--arm is {text!r}, with a value that cannot be read") from error
    lr = values.pop("lr", None)
    if lr is not None and not (isinstance(lr, int | float) and 0 < lr < math.inf):
        raise ValueError(f"--arm is {text!r}: lr is {lr!r}, expected a number above 0")
    kept = {key: values.pop(key) for key in STATES if key in values}
    for key, value in kept.items():
        allowed = STATES[key]
        if value not in allowed or type(value) is not type(allowed[0]):
            expected = f"one of {', '.join(map(str, allowed))}"
            if isinstance(allowed, range):
                expected = f"{allowed[0]} to {allowed[-1]}"
            raise ValueError(f"--arm is {text!r}: {key} is {value!r}, expected {expected}")
    margin = {"name": "kappaface", **values}
    trust_for(kept.get("robust", "off"), build_margin(**margin), torch.device("cpu"))
    return name, Arm(settings, margin, lr=lr, **kept)


def _value(text: str) -> Any:
    value = yaml.safe_load(text)
    if isinstance(value, str):
        with suppress(ValueError):  # to YAML 1e-6 is a text
            return float(value)
    return value


def choose_arms(
    names: str | None, further: list[str], reference: str = REFERENCE, *, noisy: bool = False
) -> dict[str, Arm]:
    """The arms that are asked for, the one they are compared to, and KappaFace where an arm takes
    its margin, or a report on the labels, from it.

    Args:
        names: with commas between; "none" for `further` alone, None for all of ARMS, or of
            NOISE_ARMS.
        further: texts for parse_arm.
        noisy: wrong labels are planted.

    Raises:
        ValueError: there is no such arm.
    """
    shipped = ARMS | NOISE_ARMS if noisy else ARMS
    every = dict(shipped)
    for text in further:
        name, arm = parse_arm(text)
        if name in every:
            raise ValueError(f"--arm names {name!r} twice: choose another name")
        every[name] = arm
    if reference not in every:
        raise ValueError(f"--reference is {reference!r}, expected one of {', '.join(every)}")
    chosen = list(NOISE_ARMS if noisy else ARMS)
    if names is not None:
        chosen = [] if names == "none" else [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in shipped:
            where = ", which is for --flip" if name in NOISE_ARMS else ""
            raise ValueError(f"--arms names {name!r}{where}, expected some of {', '.join(shipped)}")
    wanted = {reference, *chosen, *(name for name in every if name not in shipped)}
    after = [every[name].fixed_from or every[name].labels == "cleaned" for name in wanted]
    if any(after):
        wanted.add(SOURCE)
    return {name: arm for name, arm in every.items() if name in wanted}
