"""The loaders that tests go through."""

import pytest

from kappaface_dist.data.loading.dali import dali_is_installed

# Arguments of build_loader. The last is what happens on a GPU, as far as a CPU can do it: DALI
# decodes, through the same graph.
ARGUMENTS = {
    "cpu": {"loader": "cpu"},
    "dali": {"loader": "dali"},
    "dali_decodes": {"loader": "dali", "dali_decodes": True},
}
DALI_LOADERS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(not dali_is_installed(), reason="NVIDIA DALI is not installed"),
    )
    for name in ("dali", "dali_decodes")
]
each_loader = pytest.mark.parametrize("loader", ["cpu", *DALI_LOADERS])
each_dali_loader = pytest.mark.parametrize("loader", DALI_LOADERS)
