"""Healing under torchrun: two ranks share every parameter and come to what one comes to."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from puzzle.checkpoints import Checkpoints
from puzzle.config import Heal
from puzzle.run import Run

SCRIPT = Path(__file__).with_name("healing_rank.py")
# 12 steps of 5 sequences, which two ranks do not share evenly
OPTIONS = Heal(tokens=12 * 120, batch_tokens=120, learning_rate=3e-3, lm=0.3, checks=3)


def healing(
    ranks: int, folder: Path, model: Path, options: Heal = OPTIONS, *, dies_at: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a healing in processes of its own."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--standalone"]
    words = [str(folder), str(model), options.model_dump_json()]
    words += [] if dies_at is None else [str(dies_at)]
    command = [sys.executable, *(launch if ranks > 1 else []), str(SCRIPT), *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=dies_at is None, timeout=300
    )


def seen(folder: Path, rank: int) -> dict[str, Any]:
    """What a rank wrote down."""
    found: dict[str, Any] = json.loads((folder / f"seen{rank}.json").read_text())
    return found


def healed(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of the record."""
    return load_file(folder / "children" / "b" / "healed.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "changes", "atol"),
    [
        ("llama", {}, 1e-5),
        ("llama-tied", {}, 1e-3),  # the slopes of its key biases are next to nothing
        ("mixtral", {"recompute": True}, 1e-4),
        ("llama", {"dtype": "bfloat16"}, 2e-2),
    ],
)
def test_two_ranks_heal_as_one(
    family: str,
    changes: dict[str, Any],
    atol: float,
    checkpoints: dict[str, Path],
    tmp_path: Path,
) -> None:
    options = OPTIONS.model_copy(update=changes)
    for ranks in (1, 2):
        healing(ranks, tmp_path / str(ranks), checkpoints[family], options)
    alone, *both = seen(tmp_path / "1", 0), *(seen(tmp_path / "2", rank) for rank in range(2))
    assert [each["kinds"] for each in (alone, *both)] == [["Parameter"], ["DTensor"], ["DTensor"]]
    assert both[0] == both[1]
    for one, two in zip(alone["losses"], both[0]["losses"]):
        assert two == pytest.approx(one, rel=20 * atol)
    one, two = healed(tmp_path / "1"), healed(tmp_path / "2")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def whole(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, undisturbed."""
    folder = tmp_path_factory.mktemp("healing") / "whole"
    healing(2, folder, checkpoints["llama"])
    return folder


@pytest.fixture(scope="module")
def killed(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks that died at the eighth of twelve steps."""
    folder = tmp_path_factory.mktemp("healing") / "killed"
    assert healing(2, folder, checkpoints["llama"], dies_at=8).returncode
    run = Run(folder)
    assert len(run.load(f"{Checkpoints(run, 'children/b/healed.part', '').folder}/losses")) == 7
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 1])
def test_a_killed_healing_of_two_ranks_goes_on(
    ranks: int, whole: Path, killed: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """To the same bits with as many ranks, within tolerance with another number."""
    resumed = tmp_path / "resumed"
    shutil.copytree(killed, resumed)
    healing(ranks, resumed, checkpoints["llama"])
    assert len(seen(resumed, 0)["losses"]) == 12 - 7
    one, two = healed(whole), healed(resumed)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=0 if ranks == 2 else 1e-5)
