"""What the values of the configuration can be, and which keys contradict each other."""

import itertools
from typing import Any

from kappaface_dist.config.datasets import called, datasets
from kappaface_dist.config.keys import Config, Distill
from kappaface_dist.config.rules import Rule, all_keys, brief, check_finite, check_value

RULES = dict(all_keys(Config))
CHOICES = {name: rule.choices for name, rule in RULES.items() if rule.choices}
PROBLEM = tuple(name for name, rule in RULES.items() if rule.problem)


def check_config(config: Config) -> None:
    """Raise ValueError for values out of range, and for keys that contradict each other."""
    for name, rule in RULES.items():
        check_value(name, _value(config, name), rule)
    _check_data_and_evaluation(config)
    _check_length(config)
    _check_optimizer(config)
    _check_model(config)
    for name, own in datasets(config).items():
        try:
            _check_sampling(own)
            _check_identity_map(own)
        except ValueError as error:
            raise ValueError(f"{called(name)}: {error}" if name else str(error)) from error


def check_choice(key: str, value: object) -> None:
    """Raise ValueError if the key cannot have this value; for those too who have no Config."""
    if value not in CHOICES[key]:
        words = ", ".join(str(choice).lower() for choice in CHOICES[key])
        raise ValueError(f"{key} is {value!r}: choose one of {words}")


def _value(config: Config, key: str) -> Any:
    found: Any = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


def _check_data_and_evaluation(config: Config) -> None:
    if not config.data.train:
        raise ValueError("data.train is not set: give a .rec file or a folder of identities")
    metrics = [f"accuracy/{name}" for name in config.evaluate.sets]
    if config.checkpoint.best is not None and config.checkpoint.best not in metrics:
        raise ValueError(
            f"checkpoint.best is {config.checkpoint.best!r}, and evaluate.sets gives"
            f" {', '.join(metrics) or 'nothing to choose by'}"
        )
    if config.checkpoint.host_bytes is not None and not config.checkpoint.asynchronous:
        raise ValueError(
            f"checkpoint.host_bytes is {config.checkpoint.host_bytes}, but checkpoint.asynchronous"
            " is false, which makes no copies: leave one of them out"
        )
    if config.evaluate.every is not None and not config.evaluate.sets:
        raise ValueError(
            "evaluate.every is set, but evaluate.sets is empty: name a set or unset it"
        )


def _check_length(config: Config) -> None:
    run, warmup = config.run, config.optimizer.warmup_epochs
    if (run.epochs is None) == (run.steps is None):
        raise ValueError(
            f"run.epochs is {run.epochs} and run.steps is {run.steps}: set exactly one of them"
        )
    if run.epochs is not None and warmup >= run.epochs:
        raise ValueError(
            f"optimizer.warmup_epochs is {warmup}, but the run has only {run.epochs} epochs: warm"
            " up for less"
        )
    steps = config.profile.steps
    if steps is not None and (len(steps) != 2 or not 0 <= steps[0] < steps[1]):
        raise ValueError(f"profile.steps is {steps}: give [first, last], 0 <= first < last")


def _check_optimizer(config: Config) -> None:
    optimizer = config.optimizer
    if optimizer.name == "lamb" and optimizer.implementation != "apex":
        raise ValueError(
            "optimizer.name is 'lamb', which torch does not have: set optimizer.implementation=apex"
        )
    head = config.head
    if head.momentum_dtype != "fp32" and optimizer.name != "sgd":
        raise ValueError(
            f"head.momentum_dtype is {head.momentum_dtype}, but optimizer.name is {optimizer.name},"
            " whose state stays fp32: use sgd, or leave it fp32"
        )
    if head.second_moment == "row" and optimizer.name == "sgd":
        raise ValueError(
            "head.second_moment is row, but optimizer.name is sgd, which has none: use adamw, or"
            " leave it out"
        )
    if optimizer.cache_embeddings and optimizer.accumulate == 1:
        raise ValueError(
            "optimizer.cache_embeddings is true, but optimizer.accumulate is 1: there is nothing to"
            " cache; raise accumulate, or set it to false"
        )
    if config.backbone.static_graph and optimizer.accumulate > 1:
        raise ValueError(
            f"backbone.static_graph is true and optimizer.accumulate is {optimizer.accumulate}:"
            " DDP cannot do both, set static_graph to false"
        )


def _check_sampling(config: Config) -> None:
    name, rates = "head.sample_rate", config.head.sample_rates
    epochs = [pair[0] for pair in rates if len(pair) == 2]
    for epoch in epochs:
        check_finite(name, epoch)
    whole = all(epoch == int(epoch) for epoch in epochs)
    rising = all(a < b for a, b in itertools.pairwise(epochs))
    if not rates or len(epochs) < len(rates) or not whole or not rising or epochs[0] != 0:
        raise ValueError(
            f"{name} is {brief(rates)}: give a share, or [epoch, share] pairs with whole and rising"
            " epochs from 0 on, as [[0, 0.1], [15, 1.0]]"
        )
    for _, rate in rates:
        check_value(name, rate, Rule(above=0, at_most=1))
    if config.run.epochs is not None and epochs[-1] >= config.run.epochs:
        raise ValueError(
            f"{name} has a share from epoch {epochs[-1]:g} on, but the run has only"
            f" {config.run.epochs:g} epochs, which count from 0: leave it out or run for longer"
        )


def _check_identity_map(config: Config) -> None:
    if config.head.identity_map is not None and config.head.init is None:
        raise ValueError("head.identity_map is set, but head.init, the earlier run, is not")


def _check_model(config: Config) -> None:
    distill = config.distill
    if distill.model is None and distill != Distill():
        raise ValueError(
            "distill is set, but distill.model, the teacher, is not: name it, or leave out the rest"
        )
    if distill.kind == "relation" and config.data.batch_size == 1:
        raise ValueError(
            "distill.kind is relation, and data.batch_size is 1, which has no pairs: raise it"
        )
    if distill.cache is not None and config.data.augment not in ("none", "flip"):
        raise ValueError(
            f"distill.cache is set, and data.augment is {config.data.augment}, whose images are not"
            " those that the teacher saw: set it to flip or none, or leave distill.cache out"
        )
    if distill.cache is not None and "" not in datasets(config):
        raise ValueError(
            "distill.cache is of one dataset, and data.train names several: leave it out, or make"
            " them one with data.merge"
        )
    if config.data.labels == "mean" and "" not in datasets(config):
        raise ValueError(
            "data.labels is mean, and data.train names several datasets, of which every image has a"
            " fixed place in a batch: use draw, or make them one with data.merge"
        )
    for name in config.run.accept_changes:
        ours = any(f"{known}.".startswith(f"{name}.") for known in PROBLEM)
        if not ours and not name.startswith(("margin.", "data.train.")):
            raise ValueError(
                f"run.accept_changes names {brief(name)}: choose from {', '.join(PROBLEM)}"
            )
