"""The configuration: every key with its default, and what its value can be.

`file.py` reads it from YAML, `rules.py` has the words of the rules, `checks.py` knows which keys
contradict each other. `problem=True` marks what a run solves, which a checkpoint keeps: with
another value it is another run. Only the launcher, the trainer and builders see a Config.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kappaface_dist.config.rules import key

# Of a margin's settings those that every margin has; they outlive a change of margin.name.
MARGIN_KEYS_OF_ALL = ("name", "scale", "straight_through")


@dataclass(frozen=True)
class Run:
    name: str = "run"
    folder: str | None = None  # default: runs/<name>
    seed: int = key(0, at_least=0, problem=True)
    # passes over the data; either this or steps
    epochs: float | None = key(None, above=0, at_most=1e6)
    steps: int | None = key(None, at_least=1, at_most=1e12)  # optimizer steps
    # parts of the problem that may differ from the checkpoint's, as [data.train, margin.scale]
    accept_changes: list[str] = key([])
    resume: str = "auto"  # auto: the run folder's last checkpoint | never | a checkpoint's path
    # without progress of any rank, then the run ends
    timeout_minutes: float = key(30.0, above=0, at_most=1e6)
    # after a stop by a signal, where torchrun does not run the process
    stop_exit_code: int = key(75, at_least=0, at_most=255)


@dataclass(frozen=True)
class TrainSet:
    """One of several datasets, with a head of its own."""

    path: str | list[str] | None = None  # as data.train of one
    share: float | None = key(None, above=0, at_most=1)  # of a batch's images; all add up to 1
    weight: float = key(1.0, above=0, at_most=1e6)  # of each of its images in the loss
    margin: dict[str, Any] = key({})  # where it differs from margin
    sample_rate: float | list[list[float]] | None = key(None)  # in place of head's
    init: str | None = None  # as head.init
    identity_map: str | None = None  # as head.identity_map


@dataclass(frozen=True)
class Data:
    # a .rec file, a folder of identities, a glob, or a list of them; or s3://, gs://, https://;
    # or several datasets by name, a head each: {a: {path: ..., share: 0.7}, b: {...}}
    train: str | list[str] | dict[str, TrainSet] | None = key(None, problem=True)
    # make one dataset of several, with one head: a map of who is who (identity_map.tsv of
    # tools/find_overlap.py) of two; of more {a-b: MAP, a-c: MAP}, first column and second
    merge: str | dict[str, str] | None = key(None)
    # auto: DALI where there is a GPU and DALI
    loader: str = key("auto", choices=("auto", "dali", "cpu"))
    batch_size: int = key(128, at_least=1, at_most=1e5)  # images per rank and step
    # where a record gives an image several (clusters as classes): its first | draw one of them in
    # each epoch | the mean of the losses of all
    labels: str = key("first", choices=("first", "draw", "mean"), problem=True)
    # pixels; images are decoded to this size
    image_size: int = key(112, at_least=1, at_most=1024, problem=True)
    augment: str = key("flip", choices=("none", "flip", "adaface", "strong"))
    # decoding threads per rank; 0: this rank's share of the cores
    num_threads: int = key(0, at_least=0, at_most=4096)
    # images per block, for slow disks and .parquet; 0: shuffle them all
    block_shuffle: int = key(0, at_least=0, at_most=2**31, problem=True)
    # of object storage; a folder on each machine's disk, null: ~/.cache/kappaface_dist/remote
    cache: str | None = None
    # of it; a dataset that is larger needs block_shuffle
    cache_gigabytes: float = key(100.0, above=0, at_most=1e6)
    # of the images read; above it training stops
    max_corrupt_share: float = key(0.05, at_least=0, at_most=1)


@dataclass(frozen=True)
class Backbone:
    # r18 | r34 | r50 | r100 | r200 | mbf | mbf_large | vit_t | vit_s | vit_b | vit_l
    # or for CPUs tiny | tiny_gn; or any of timm's image networks: timm/NAME
    name: str = key("r50", problem=True)
    embedding_size: int = key(512, at_least=1, at_most=65536, problem=True)
    # blocks of each stage (vit: one number); null: the name's
    depths: list[int] | None = key(None, at_least=1, at_most=1000, problem=True)
    # channels of each stage (vit: one number); null: the name's
    widths: list[int] | None = key(None, at_least=1, at_most=65536, problem=True)
    # rate of the last block, rising from 0; null: the name's
    drop_path: float | None = key(None, at_least=0, below=1)
    dropout: float = key(0.0, at_least=0, below=1)
    # vit: share of the patches left out; null: the name's
    mask_ratio: float | None = key(None, at_least=0, below=1)
    # Recompute activations in the backward pass, less memory: true, false, or stages as [1, 2];
    # timm's know all or none
    checkpointing: bool | list[int] = key(False, at_least=1, at_most=4)
    channels_last: bool = False  # memory format of images and convolutions
    # By torch.compile, minutes at the start: true, false, or its mode: reduce-overhead (CUDA graphs
    # spare the host) | max-autotune (these too, and kernels chosen by trying)
    compile: bool | str = key(False, choices=(True, False, "reduce-overhead", "max-autotune"))
    sync_batchnorm: bool = False  # statistics of all ranks' images; GPUs only
    # of the gradients that the ranks exchange
    gradient_dtype: str = key("fp32", choices=("fp32", "bf16"))
    static_graph: bool = False  # DDP need not look at the graph of every step
    # of gradients exchanged in one all-reduce
    bucket_megabytes: float = key(25.0, above=0, at_most=1e5)
    init: str | None = None  # exported .safetensors or InsightFace's .pth to start from
    first_steps: int = key(0, at_least=0)  # so many steps have a learning rate of their own:
    # times that of the head; 0: the backbone is frozen
    first_lr_factor: float = key(0.0, at_least=0)


@dataclass(frozen=True)
class Head:
    # share of the classes that are negatives in a step; 1 is exact; or [[epoch, share], ...], each
    sample_rate: float | list[list[float]] = key(1.0)  # from its epoch on, as [[0, 0.1], [15, 1]]
    # operands of the head's matrix products
    dtype: str = key("fp32", choices=("fp32", "bf16"))
    # of the centres between steps; bf16: rounded stochastically, half the bytes
    centre_dtype: str = key("fp32", choices=("fp32", "bf16"))
    # of sgd's momentum of the centres; none: no momentum, at lr / (1 - optimizer.momentum)
    momentum_dtype: str = key("fp32", choices=("fp32", "bf16", "none"))
    # of adamw: one for each parameter of a centre, or one for a class
    second_moment: str = key("element", choices=("element", "row"))
    # per rank: what the second pass need not compute again
    logit_cache_bytes: int = key(0, at_least=0, at_most=1e15)
    # negatives with a cosine above it are left out
    filter_threshold: float | None = key(None, above=0, below=1, problem=True)
    # share of the negatives' mass that the second pass may leave out
    skip_mass: float = key(0.0, at_least=0, below=1)
    # Triton kernels for bf16 products on a GPU: tiles write no logits, chunks do, off is none; auto
    # is what `kappaface gpu-check` measured to be the faster on this machine, otherwise chunks
    fused: bool | str = key("auto", choices=(True, False, "auto", "tiles", "chunks"))
    # by how likely its label is right, from two kinds of target cosines in the epoch before: an
    # image counts in the loss, dirty ones not in kappaface's statistics, or both
    robust: str = key("off", choices=("off", "loss", "statistics", "both"), problem=True)
    # centres a class, of which an image meets the nearest: wrong labels gather at the others
    sub_centres: int = key(1, at_least=1, at_most=100, problem=True)
    init: str | None = None  # checkpoint of an earlier run, whose identities stay
    identity_map: str | None = None  # which of its classes is which (tools/map_identities.py)

    @property
    def sample_rates(self) -> list[list[float]]:
        """[epoch, share] from the first epoch on, rising epochs."""
        rate = self.sample_rate
        return rate if isinstance(rate, list) else [[0, rate]]

    @property
    def largest_sample_rate(self) -> float:
        return max(rate for _, rate in self.sample_rates)

    def sample_rate_in(self, epoch: int) -> float:
        """Of a step that begins in this epoch, from 0."""
        return [rate for first, rate in self.sample_rates if first <= epoch][-1]


@dataclass(frozen=True)
class Distill:
    # the teacher: a run, a checkpoint or an export of ours, or InsightFace's .pth or .onnx
    model: str | None = key(None, problem=True)
    # Parquet file of its embeddings, in its place (tools/cache_teacher.py writes it)
    cache: str | None = None
    weight: float = key(1.0, above=0, problem=True)  # of its loss, beside the margin's
    # cosine: 1 - cos to its embedding, of equal size; relation: the cosines of a rank's pairs
    kind: str = key("cosine", choices=("cosine", "relation"), problem=True)
    # false: the backbone learns from the teacher alone, and the centres follow it
    margin_loss: bool = key(True, problem=True)


@dataclass(frozen=True)
class Optimizer:
    # for backbone and head, whose lamb is adamw; lamb is apex's
    name: str = key("sgd", choices=("sgd", "adamw", "lamb"))
    # of the backbone's; apex has fused kernels, on GPUs only
    implementation: str = key("torch", choices=("torch", "apex"))
    lr: float = key(0.1, above=0)
    # lr is for this many images a step, and scaled linearly to the real number; null: as it is
    reference_batch: int | None = key(None, at_least=1)
    momentum: float = key(0.9, at_least=0, below=1)  # of sgd
    weight_decay: float = key(5e-4, at_least=0)
    # over the whole run, down to 0
    schedule: str = key("polynomial", choices=("polynomial", "cosine"))
    power: float = key(2.0, above=0)  # of the polynomial schedule
    warmup_epochs: float = key(0.0, at_least=0)
    clip_norm: float | None = key(5.0, above=0)  # of the backbone's gradient; null: no clipping
    # micro-batches of data.batch_size per rank that make one step
    accumulate: int = key(1, at_least=1, at_most=1e5)
    cache_embeddings: bool = False  # with accumulate: the head once for all of them, the
    #                                 backbone's forward pass twice


@dataclass(frozen=True)
class Evaluate:
    # name: path of a .bin of pairs; {} leaves out those of an extended file
    sets: dict[str, str] = key({})
    every: int | None = key(None, at_least=1)  # steps; null: at the end only


@dataclass(frozen=True)
class Checkpoint:
    every: int | None = key(1000, at_least=1)  # steps; null: only at the end and when stopped
    keep: int = key(2, at_least=1)  # the last so many stay
    best: str | None = None  # accuracy/<set>: the checkpoint with the highest stays too
    asynchronous: bool = True  # write beside the training; costs host memory of the same size
    # bytes of it per rank at most; the training waits until the rest is written; null: all
    host_bytes: int | None = key(None, at_least=0, at_most=1e15)


@dataclass(frozen=True)
class Log:
    every: int = key(50, at_least=1)  # steps
    tensorboard: bool = True
    wandb: str = key("off", choices=("off", "offline", "online"))


@dataclass(frozen=True)
class Profile:
    # [first, last]: torch's profiler watches rank 0 from step first up to, not with, step last
    steps: list[int] | None = key(None, at_least=0)


@dataclass(frozen=True)
class Config:
    run: Run = field(default_factory=Run)
    data: Data = field(default_factory=Data)
    backbone: Backbone = field(default_factory=Backbone)
    head: Head = field(default_factory=Head)
    # name (those of head/margins/build.py), scale, and the margin's own keys
    margin: dict[str, Any] = key({"name": "kappaface"}, problem=True)
    distill: Distill = field(default_factory=Distill)
    optimizer: Optimizer = field(default_factory=Optimizer)
    # the backbone's autocast
    precision: str = key("fp32", choices=("bf16", "fp16", "fp32"))
    evaluate: Evaluate = field(default_factory=Evaluate)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    log: Log = field(default_factory=Log)
    profile: Profile = field(default_factory=Profile)

    @property
    def folder(self) -> Path:
        """Where the run keeps everything."""
        return Path(self.run.folder or f"runs/{self.run.name}")
