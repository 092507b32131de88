"""A backbone as a torch.export program (.pt2), checked against the network itself."""

import io
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from kappaface_dist.models.export import BackboneSettings, export_metadata
from kappaface_dist.models.exported import METADATA_FILE, read_program
from kappaface_dist.models.onnx_export import Comparison, compare
from kappaface_dist.whole_files import write_whole


def export_program(
    path: Path,
    model: nn.Module,
    settings: BackboneSettings,
    *,
    facts: Mapping[str, str] | None = None,
) -> Comparison:
    """Write model as a program for any batch size, and compare it, read back, with the model.

    Args:
        model: the bare network on the CPU, in eval mode.
        facts: what else the file is to say of itself (metadata.py).
    """
    example = torch.zeros(2, 3, settings.image_size, settings.image_size)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model, (example,), dynamic_shapes=shapes)
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            # Where in whose folders each operator was called: no reader of the file needs it.
            node.meta.pop("stack_trace", None)
    buffer = io.BytesIO()
    metadata = export_metadata(settings, model, facts)
    torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(metadata)})
    write_whole(path, buffer.getvalue())
    return compare(read_program(path)[0].run, model, settings)
