"""Fixtures every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tiny import FAMILIES, SIZES, tiny_model

# One thread, here and in processes that tests start: bits are the same at equal threads only, and
# for models this small a second thread costs more than it brings, far more where cores are shared.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Every supported family in turn."""
    return request.param


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder of a saved tiny checkpoint, by family."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name in FAMILIES:
        tiny_model(name).save_pretrained(root / name)
    return {name: root / name for name in FAMILIES}


@pytest.fixture
def tokens() -> torch.Tensor:
    """Token ids [8, 24]."""
    return torch.randint(
        0, SIZES["vocab_size"], (8, 24), generator=torch.Generator().manual_seed(1)
    )
