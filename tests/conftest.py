"""Every test starts from the same random state, on few threads, with the package registered."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

import unfoldldm_basicsr  # noqa: F401  (makes `import basicsr` work and registers the classes)


@pytest.fixture(autouse=True)
def _same_random_state():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (BasicSR draws from the global generator)
    torch.manual_seed(0)


@pytest.fixture(scope='session', autouse=True)
def _few_threads():
    torch.set_num_threads(min(2, torch.get_num_threads()))
