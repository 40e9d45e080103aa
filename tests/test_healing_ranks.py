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
Job = dict[str, Any]
# family, changes of the options, and how near two ranks come to one
CASES = {
    "llama": ("llama", {}, 1e-5),
    "tied": ("llama-tied", {}, 1e-3),  # the slopes of its key biases are next to nothing
    "mixture, recomputed": ("mixtral", {"recompute": True}, 1e-4),
    "bfloat16": ("llama", {"dtype": "bfloat16"}, 2e-2),
}


def job(folder: Path, model: Path, options: Heal = OPTIONS, dies: int | None = None) -> Job:
    """One healing."""
    asked = options.model_dump(mode="json")
    return {"run": str(folder), "model": str(model), "options": asked, "dies": dies}


def healing(ranks: int, *jobs: Job) -> subprocess.CompletedProcess[str]:
    """Run healings in processes of their own."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--standalone"]
    command = [sys.executable, *(launch if ranks > 1 else []), str(SCRIPT), json.dumps(jobs)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def seen(folder: Path, rank: int) -> dict[str, Any]:
    """What a rank wrote down."""
    found: dict[str, Any] = json.loads((folder / f"seen{rank}.json").read_text())
    return found


def healed(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of the record."""
    return load_file(folder / "children" / "b" / "healed.safetensors")


@pytest.fixture(scope="module")
def all_cases(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case healed by one rank and by two, in a folder of its name and their number."""
    root = tmp_path_factory.mktemp("cases")
    for ranks in (1, 2):
        jobs = [
            job(root / name / str(ranks), checkpoints[family], OPTIONS.model_copy(update=changes))
            for name, (family, changes, _) in CASES.items()
        ]
        healing(ranks, *jobs).check_returncode()
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_heal_as_one(name: str, all_cases: Path) -> None:
    folder, (_, _, atol) = all_cases / name, CASES[name]
    alone, *both = seen(folder / "1", 0), *(seen(folder / "2", rank) for rank in range(2))
    assert [each["kinds"] for each in (alone, *both)] == [["Parameter"], ["DTensor"], ["DTensor"]]
    assert both[0] == both[1]
    for one, two in zip(alone["losses"], both[0]["losses"]):
        assert two == pytest.approx(one, rel=20 * atol)
    one, two = healed(folder / "1"), healed(folder / "2")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def whole(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, undisturbed."""
    folder = tmp_path_factory.mktemp("healing") / "whole"
    healing(2, job(folder, checkpoints["llama"])).check_returncode()
    return folder


@pytest.fixture(scope="module")
def killed(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks that died at the eighth of twelve steps."""
    folder = tmp_path_factory.mktemp("healing") / "killed"
    assert healing(2, job(folder, checkpoints["llama"], dies=8)).returncode
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
    healing(ranks, job(resumed, checkpoints["llama"])).check_returncode()
    assert len(seen(resumed, 0)["losses"]) == 12 - 7
    one, two = healed(whole), healed(resumed)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=0 if ranks == 2 else 1e-5)
