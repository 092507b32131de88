"""What follows from the configuration, the data and the ranks, in numbers."""

from dataclasses import asdict
from typing import Any

from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.build import Job, peak_lr


def derived_numbers(job: Job) -> dict[str, Any]:
    """What follows from the configuration, the data and the ranks: for --check and the log."""
    parameters = sum(p.numel() for p in job.network.parameters())
    state = [*job.head.sharded_state().values()]
    if (memory := job.head.class_margins.memory) is not None:
        state.append(memory.row_JD)
    state_bytes = sum(t.numel() * t.element_size() for t in state)
    return {
        "world_size": parallel.world_size(),
        "device": str(job.device.type),
        "classes": job.catalog.num_classes,
        "images": job.catalog.num_images,
        "left_out": dict(job.catalog.left_out.counts),
        "images_per_class": f"{job.catalog.count_C.min()} to {job.catalog.count_C.max()}",
        "classes_per_rank": [len(r) for r in parallel.gather_objects(job.head.classes)],
        "global_batch": job.global_batch,
        "steps": job.length.steps_left(0, 0),
        "steps_per_epoch": round(job.catalog.num_images / job.global_batch, 1),
        "peak_lr": peak_lr(job.config),
        "backbone_parameters": parameters,
        # Weights, gradients and optimizer state, fp32; activations come on top.
        "backbone_megabytes": round(
            parameters * 4 * (3 if job.config.optimizer.name == "sgd" else 4) / 1e6, 1
        ),
        "head_megabytes_per_rank": round(state_bytes / 1e6, 1),
        "verification": {name: pairs.num_pairs for name, pairs in job.pair_sets.items()},
        "settings": asdict(job.head.margin),
        **({} if job.distiller is None else {"teacher": job.distiller.facts}),
    }
