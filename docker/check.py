"""Say what the image can do; ends with code 1 where it cannot train."""

import json
import sys
from importlib.metadata import version
from importlib.util import find_spec

import torch

from kappaface_dist.backbones import build_backbone
from kappaface_dist.head import PartialFC


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = build_backbone("tiny", embedding_size=16, image_size=32).to(device)
    head = PartialFC(10, 16, device=device)
    images = torch.rand(4, 3, 32, 32, device=device)
    loss = head(network(images), torch.arange(4, device=device))
    loss.backward()
    head.step(0.1)
    report = {
        "package": version("kappaface_dist"),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "dali": find_spec("nvidia.dali") is not None if find_spec("nvidia") else False,
        "apex": find_spec("apex") is not None,
        "one_step_on": device,
        "loss": loss.item(),
    }
    print(json.dumps(report, indent=2))
    if not torch.isfinite(loss):
        sys.exit("error: the loss of a first step is not finite")


if __name__ == "__main__":
    main()
