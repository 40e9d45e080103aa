"""Fixtures every test may use."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

import pytest
import torch
import transformers
from tiny import FAMILIES, SETTINGS, SIZES, tiny_model

from puzzle import Result, search
from puzzle.library import Library
from puzzle.parent import open_parent

# One thread, here and in processes that tests start: bits are the same at equal threads only, and
# for models this small a second thread costs more than it brings, far more where cores are shared.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# On the CPU, where bits are promised. `CUDA_VISIBLE_DEVICES=0 python -m pytest tests/kernels
# tests/test_gpu.py` runs what is meant for a GPU.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: started last, they would keep one process busy alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


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


@pytest.fixture(scope="session")
def tiny_parent(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random Llama with the embedded tokenizer."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    config = transformers.LlamaConfig(
        vocab_size=4096,
        hidden_size=64,
        intermediate_size=1024,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    embedded = resources.files("puzzle.data") / "parent"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((embedded / name).read_bytes())
    return str(folder)


@pytest.fixture(scope="session")
def result(tiny_parent: str, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A finished search."""
    return search(tiny_parent, out=tmp_path_factory.mktemp("runs") / "whole", settings=SETTINGS)


@pytest.fixture(scope="session")
def library(result: Result) -> Library:
    """The library of the finished search."""
    return Library(result.run, open_parent(result.architecture.parent))
