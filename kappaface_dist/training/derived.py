"""What follows from the configuration, the data and the ranks, in numbers."""

from dataclasses import asdict
from typing import Any

from kappaface_dist.head import PartialFC
from kappaface_dist.head.heads import heads_by_name
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.build import Job, peak_lr


def derived_numbers(job: Job) -> dict[str, Any]:
    """What follows from the configuration, the data and the ranks: for --check and the log."""
    parameters = sum(p.numel() for p in job.network.parameters())
    heads, catalogs = heads_by_name(job.head), job.catalogs
    state_bytes = sum(_state_bytes(head) for head in heads.values())
    of_each = {name: _of_dataset(job, name) for name in catalogs}
    told = of_each.get("", {"datasets": of_each})
    return {
        "world_size": parallel.world_size(),
        "device": str(job.device.type),
        "classes": sum(catalog.num_classes for catalog in catalogs.values()),
        "images": job.num_images,
        **told,
        "global_batch": job.global_batch,
        "steps": job.length.steps_left(0, 0),
        "steps_per_epoch": round(job.num_images / job.global_batch, 1),
        "peak_lr": peak_lr(job.config),
        "backbone_parameters": parameters,
        # Weights, gradients and optimizer state, fp32; activations come on top.
        "backbone_megabytes": round(
            parameters * 4 * (3 if job.config.optimizer.name == "sgd" else 4) / 1e6, 1
        ),
        "head_megabytes_per_rank": round(state_bytes / 1e6, 1),
        "verification": {name: pairs.num_pairs for name, pairs in job.pair_sets.items()},
        **({} if job.distiller is None else {"teacher": job.distiller.facts}),
    }


def _of_dataset(job: Job, name: str) -> dict[str, Any]:
    """Of the dataset of that name, and its head."""
    catalog, head = job.catalogs[name], heads_by_name(job.head)[name]
    count_C = catalog.count_C
    found = {
        **({"merged": catalog.merged} if catalog.merged else {}),
        **({} if catalog.label_IL is None else {"labels_per_image": catalog.label_IL.shape[1]}),
        "left_out": dict(catalog.left_out.counts),
        "images_per_class": f"{count_C.min()} to {count_C.max()}",
        "classes_per_rank": [len(r) for r in parallel.gather_objects(head.classes)],
        "settings": asdict(head.margin),
    }
    if not name:
        return found
    per_step = job.streams.counts[name] * job.global_batch // job.config.data.batch_size
    return {
        "classes": catalog.num_classes,
        "images": catalog.num_images,
        "images_per_step": per_step,
        "steps_per_epoch": round(catalog.num_images / per_step, 1),
        **found,
    }


def _state_bytes(head: PartialFC) -> int:
    state = [*head.sharded_state().values()]
    if (memory := head.class_margins.memory) is not None:
        state.append(memory.row_JD)
    return sum(t.numel() * t.element_size() for t in state)
