"""What the values of the configuration can be, and which keys contradict each other."""

from typing import Any

from kappaface_dist.config.keys import Config

CHOICES = {
    "data.loader": ("auto", "dali", "cpu"),
    "data.augment": ("none", "flip", "adaface", "strong"),
    "head.dtype": ("fp32", "bf16"),
    "head.momentum_dtype": ("fp32", "bf16"),
    "backbone.compile": (True, False, "reduce-overhead", "max-autotune"),
    "backbone.gradient_dtype": ("fp32", "bf16"),
    "optimizer.name": ("sgd", "adamw", "lamb"),
    "optimizer.implementation": ("torch", "apex"),
    "optimizer.schedule": ("polynomial", "cosine"),
    "precision": ("bf16", "fp16", "fp32"),
    "log.wandb": ("off", "offline", "online"),
}
AT_LEAST_ONE = (
    "data.batch_size",
    "data.image_size",
    "backbone.embedding_size",
    "optimizer.reference_batch",
    "optimizer.accumulate",
    "evaluate.every",
    "checkpoint.every",
    "checkpoint.keep",
    "log.every",
    "run.steps",
)
POSITIVE = (
    "run.epochs",
    "run.timeout_minutes",
    "optimizer.lr",
    "optimizer.power",
    "optimizer.clip_norm",
    "backbone.bucket_megabytes",
)


def check_config(config: Config) -> None:
    """Raise ValueError for values out of range, and for keys that contradict each other."""
    for key in CHOICES:
        check_choice(key, _value(config, key))
    for key in AT_LEAST_ONE:
        number = _value(config, key)
        if number is not None and number < 1:
            raise ValueError(f"{key} is {number}: it must be at least 1")
    for key in POSITIVE:
        number = _value(config, key)
        if number is not None and number <= 0:
            raise ValueError(f"{key} is {number}: it must be above 0")
    _check_data_and_evaluation(config)
    _check_length(config)
    _check_optimizer(config)
    _check_model(config)


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
    data = config.data
    if not data.train:
        raise ValueError("data.train is not set: give a .rec file or a folder of identities")
    if not 0.0 <= data.max_corrupt_share <= 1.0:
        raise ValueError(
            f"data.max_corrupt_share is {data.max_corrupt_share}: it is a share, 0 to 1"
        )
    if data.block_shuffle < 0:
        raise ValueError(f"data.block_shuffle is {data.block_shuffle}, below 0")
    metrics = [f"accuracy/{name}" for name in config.evaluate.sets]
    if config.checkpoint.best is not None and config.checkpoint.best not in metrics:
        raise ValueError(
            f"checkpoint.best is {config.checkpoint.best!r}, and evaluate.sets gives"
            f" {', '.join(metrics) or 'nothing to choose by'}"
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
    if not 0 <= run.stop_exit_code <= 255:
        raise ValueError(f"run.stop_exit_code is {run.stop_exit_code}: choose 0 to 255")
    if warmup < 0:
        raise ValueError(f"optimizer.warmup_epochs is {warmup}, below 0")
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
    if config.head.momentum_dtype == "bf16" and optimizer.name != "sgd":
        raise ValueError(
            f"head.momentum_dtype is bf16, but optimizer.name is {optimizer.name}, whose state"
            " stays fp32: use sgd, or leave it fp32"
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


def _check_model(config: Config) -> None:
    backbone = config.backbone
    if config.head.identity_map is not None and config.head.init is None:
        raise ValueError("head.identity_map is set, but head.init, the earlier run, is not")
    if backbone.first_steps < 0 or backbone.first_lr_factor < 0:
        raise ValueError(
            f"backbone.first_steps is {backbone.first_steps} and first_lr_factor"
            f" {backbone.first_lr_factor}: neither can be below 0"
        )
