"""What to change when training waits for data."""

from dataclasses import dataclass

WORTH_SAYING = 0.05  # share of the time
BLOCK = 1024


@dataclass(frozen=True)
class Reading:
    """How the data is read now.

    Attributes:
        loader: "dali" or "cpu".
        on_gpu: whether training is on a GPU.
        has_dali: whether DALI is installed.
        num_threads: of the loader.
        num_cores: that this rank may use.
        augment: name of the preset.
        block_shuffle: as in the configuration.
    """

    loader: str
    on_gpu: bool
    has_dali: bool
    num_threads: int
    num_cores: int
    augment: str
    block_shuffle: int


def advice(waited: float, reading: Reading) -> str | None:
    """A sentence with the things to change, the most useful first; None below 5 %.

    Args:
        waited: share of the time without a batch, 0 to 1.
        reading: how the data is read now.
    """
    if waited <= WORTH_SAYING:
        return None
    steps = []
    if reading.on_gpu and reading.loader == "cpu":
        if reading.has_dali:
            steps.append("set data.loader=dali to decode on the GPU")
        else:
            steps.append("pip install 'kappaface_dist[dali]' to decode on the GPU")
    if reading.num_threads < reading.num_cores:
        steps.append(f"raise data.num_threads from {reading.num_threads} to {reading.num_cores}")
    elif reading.on_gpu:
        steps.append(
            f"give each process more than its {reading.num_cores} cores (--cpus-per-task of Slurm)"
        )
    if reading.augment not in ("none", "flip"):
        steps.append(f"try data.augment=flip, {reading.augment!r} costs more")
    disk = "copy the dataset to a local disk"
    if not reading.block_shuffle:
        disk += f" or set data.block_shuffle={BLOCK}"
    steps.append(f"if the disk is the limit, {disk}")
    steps.append("tools/benchmark_data.py measures the loader alone")
    return f"training waits for data {waited:.0%} of the time: " + "; ".join(steps)
