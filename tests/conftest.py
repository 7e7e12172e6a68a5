"""What tests share: exactly solvable models, and the built-in student loaded once."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from gradalign.models import LoadOptions, load_model
from gradalign.testbed import TabularModel

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tabular() -> TabularModel:
    """Four tokens, four steps, 256 sequences."""
    return TabularModel.random(vocabulary=4, length=4, seed=3)


@pytest.fixture(scope="session")
def small():
    """`builtin:small`, loaded once."""
    return load_model("builtin:small", LoadOptions(device="cpu"))
