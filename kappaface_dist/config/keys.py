"""The configuration: every key and its default.

`file.py` reads it from YAML, `checks.py` says what a value can be. Only the launcher, the trainer
and builders see a Config.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    name: str = "run"
    folder: str | None = None  # default: runs/<name>
    seed: int = 0
    epochs: float | None = None  # passes over the data; either this or steps
    steps: int | None = None  # optimizer steps
    resume: str = "auto"  # auto: the run folder's last checkpoint | never | a checkpoint's path
    timeout_minutes: float = 30.0  # without progress of any rank, then the run ends
    stop_exit_code: int = 75  # after a stop by a signal, where torchrun does not run the process


@dataclass(frozen=True)
class Data:
    train: Any = None  # a .rec file, a folder of identities, a glob, or a list of them
    loader: str = "auto"  # auto | dali | cpu; auto: DALI where there is a GPU and DALI
    batch_size: int = 128  # images per rank and step
    image_size: int = 112  # pixels; images are decoded to this size
    augment: str = "flip"  # none | flip | adaface | strong
    num_threads: int = 0  # decoding threads per rank; 0: this rank's share of the cores
    block_shuffle: int = 0  # images per block, for slow disks and .parquet; 0: shuffle them all
    max_corrupt_share: float = 0.05  # of the images read; above it training stops


@dataclass(frozen=True)
class Backbone:
    # r18 | r34 | r50 | r100 | r200 | mbf | mbf_large | vit_t | vit_s | vit_b | vit_l
    name: str = "r50"  # or for CPUs tiny | tiny_gn
    embedding_size: int = 512
    depths: list[int] | None = None  # blocks of each stage (vit: one number); null: the name's
    widths: list[int] | None = None  # channels of each stage (vit: one number); null: the name's
    drop_path: float | None = None  # rate of the last block, rising from 0; null: the name's
    dropout: float = 0.0
    mask_ratio: float | None = None  # vit: share of the patches left out; null: the name's
    # Recompute activations in the backward pass, less memory: true, false, or stages as [1, 2]
    checkpointing: Any = False
    channels_last: bool = False  # memory format of images and convolutions
    # By torch.compile, minutes at the start: true, false, or its mode: reduce-overhead (CUDA graphs
    # spare the host) | max-autotune (these too, and kernels chosen by trying)
    compile: Any = False
    sync_batchnorm: bool = False  # statistics of all ranks' images; GPUs only
    gradient_dtype: str = "fp32"  # fp32 | bf16: of the gradients that the ranks exchange
    static_graph: bool = False  # DDP need not look at the graph of every step
    bucket_megabytes: float = 25.0  # of gradients exchanged in one all-reduce
    init: str | None = None  # exported .safetensors or InsightFace's .pth to start from
    first_steps: int = 0  # so many steps have a learning rate of their own:
    first_lr_factor: float = 0.0  # times that of the head; 0: the backbone is frozen


@dataclass(frozen=True)
class Head:
    sample_rate: float = 1.0  # share of the classes that are negatives in a step; 1 is exact
    dtype: str = "fp32"  # fp32 | bf16: operands of the head's matrix products
    momentum_dtype: str = "fp32"  # fp32 | bf16: of sgd's momentum of the centres
    logit_cache_bytes: int = 0  # per rank: what the second pass need not compute again
    filter_threshold: float | None = None  # negatives with a cosine above it are left out
    skip_mass: float = 0.0  # share of the negatives' mass that the second pass may leave out
    fused: bool = True  # Triton kernels for bf16 on a GPU; false: plain PyTorch
    init: str | None = None  # checkpoint of an earlier run, whose identities stay
    identity_map: str | None = None  # which of its classes is which (tools/map_identities.py)


@dataclass(frozen=True)
class Optimizer:
    name: str = "sgd"  # sgd | adamw | lamb (apex); for backbone and head, whose lamb is adamw
    implementation: str = "torch"  # torch | apex: of the backbone's; fused kernels, GPUs only
    lr: float = 0.1
    reference_batch: int | None = None  # lr is for this many images a step, and scaled
    #                                     linearly to the real number; null: taken as it is
    momentum: float = 0.9  # of sgd
    weight_decay: float = 5e-4
    schedule: str = "polynomial"  # polynomial | cosine; over the whole run, down to 0
    power: float = 2.0  # of the polynomial schedule
    warmup_epochs: float = 0.0
    clip_norm: float | None = 5.0  # of the backbone's gradient; null: no clipping
    accumulate: int = 1  # micro-batches of data.batch_size per rank that make one step
    cache_embeddings: bool = False  # with accumulate: the head once for all of them, the
    #                                 backbone's forward pass twice


@dataclass(frozen=True)
class Evaluate:
    # name: path of a .bin of pairs; {} leaves out those of an extended file
    sets: dict[str, str] = field(default_factory=dict)
    every: int | None = None  # steps; null: at the end only


@dataclass(frozen=True)
class Checkpoint:
    every: int | None = 1000  # steps; null: only at the end and when stopped
    keep: int = 2  # the last so many stay
    best: str | None = None  # accuracy/<set>: the checkpoint with the highest stays too
    asynchronous: bool = True  # write beside the training; costs host memory of the same size


@dataclass(frozen=True)
class Log:
    every: int = 50  # steps
    tensorboard: bool = True
    wandb: str = "off"  # off | offline | online


@dataclass(frozen=True)
class Profile:
    # [first, last]: torch's profiler watches rank 0 from step first up to, not with, step last
    steps: list[int] | None = None


@dataclass(frozen=True)
class Config:
    run: Run = field(default_factory=Run)
    data: Data = field(default_factory=Data)
    backbone: Backbone = field(default_factory=Backbone)
    head: Head = field(default_factory=Head)
    # name (those of head/margins/build.py), scale, and the margin's own keys
    margin: dict[str, Any] = field(default_factory=lambda: {"name": "kappaface"})
    optimizer: Optimizer = field(default_factory=Optimizer)
    precision: str = "fp32"  # bf16 | fp16 | fp32: the backbone's autocast
    evaluate: Evaluate = field(default_factory=Evaluate)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    log: Log = field(default_factory=Log)
    profile: Profile = field(default_factory=Profile)

    @property
    def folder(self) -> Path:
        """Where the run keeps everything."""
        return Path(self.run.folder or f"runs/{self.run.name}")
