"""Draws from a known distribution."""

import numpy as np
import pytest
import torch
from scipy.stats import vonmises_fisher


@pytest.fixture(scope="session")
def draws():
    """10,000 unit vectors [10000, 512] from scipy's von Mises-Fisher sampler with κ = 700, all
    around the first axis.
    """
    mean = np.eye(512)[0]
    sample = vonmises_fisher(mean, 700.0, seed=np.random.default_rng(0)).rvs(10_000)
    return torch.from_numpy(sample).float()
