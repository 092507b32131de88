"""What the collectives of a run may send: lists of the two libraries, not of our code."""

import torch

# getNcclDataType of torch's ProcessGroupNCCL; complex numbers travel as pairs.
NCCL = {
    *(torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
}
# GENERATE_ALL_TYPES of torch's ProcessGroupGloo.
GLOO = {
    *(torch.int8, torch.uint8, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
}


def check_types(collectives):
    for call in collectives:
        allowed = NCCL if call.device == "cuda" else GLOO
        assert call.dtype in allowed, f"{call} sends {call.dtype}"
