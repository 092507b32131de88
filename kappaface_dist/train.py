"""Train from any folder: torchrun --nproc_per_node=8 -m kappaface_dist.train CONFIG [key=value ...]

This is launch/train.py itself, wherever the package has it.
"""

import runpy

from kappaface_dist.config.shipped import shipped_folder

if __name__ == "__main__":
    runpy.run_path(str(shipped_folder("launch") / "train.py"), run_name="__main__")
