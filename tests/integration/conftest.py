"""A small rendered dataset, and a configuration that trains on it in seconds."""

import pytest
import yaml

from kappaface_dist.made_up_faces.dataset import write_faces


@pytest.fixture(scope="session")
def faces(tmp_path_factory):
    """A folder with train.rec (30 identities) and unseen.bin, of 32 x 32 pixels."""
    folder = tmp_path_factory.mktemp("faces")
    write_faces(folder, num_identities=30, num_unseen=10, seed=1, image_size=32, processes=2)
    return folder


@pytest.fixture
def write_config(faces, tmp_path):
    """Writes a configuration for the small dataset; sections are merged into the defaults."""

    def _write(**sections):
        content = {
            "run": {"folder": str(tmp_path / "run"), "steps": 30},
            "data": {"train": str(faces / "train.rec"), "batch_size": 12, "image_size": 32},
            "backbone": {"name": "tiny", "embedding_size": 32},
            "margin": {"name": "kappaface", "scale": 16},
            "optimizer": {"lr": 0.05},
            "checkpoint": {"every": 10},
            "log": {"every": 1, "tensorboard": False},
        }
        for name, section in sections.items():
            if isinstance(section, dict):
                content[name] = {**content.get(name, {}), **section}
            else:
                content[name] = section
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return _write
