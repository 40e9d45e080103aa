"""Several ranks write the same run as one: torchrun with gloo, one thread each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from content import content
from tiny import SETTINGS

from puzzle import Result
from puzzle.ranks import Ranks
from puzzle.run import Run


@pytest.mark.parametrize(("layers", "world"), [(1, 1), (7, 3), (8, 8), (2, 5), (80, 6)])
def test_ranks_share_the_layers(layers: int, world: int) -> None:
    """Every layer once, in order, as even as can be; the last rank owns the last layer."""
    shares = [Ranks(rank, world).mine(layers) for rank in range(world)]
    assert [layer for share in shares for layer in share] == list(range(layers))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert Ranks(world - 1, world).last
    assert layers - 1 in shares[-1]


def torchrun(count: int, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `puzzle` under torchrun on this machine."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(count), "--standalone"]
    command = [sys.executable, *launch, "-m", "puzzle", *words]
    return subprocess.run(command, capture_output=True, text=True, check=check, timeout=300)


@pytest.mark.slow
def test_two_ranks_write_the_run_of_one(tiny_parent: str, result: Result, tmp_path: Path) -> None:
    """The same records bit for bit, one table, and a rank that died is made up for by a rerun."""
    out = tmp_path / "two"
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    command = ["search", "--model", tiny_parent, "--out", str(out), *settings]
    done = torchrun(2, *command)
    assert done.stdout.count("memory") == 1
    one, two = result.run, Run(out)
    for kind in ("trace/parent/**/*", "library/*", "scores/*", "solutions/*"):
        names = two.names(kind)
        assert names
        assert names == one.names(kind)
        assert all(content(one, name) == content(two, name) for name in names)
    assert Result(two, result.name).architecture == result.architecture

    lost = [*(out / "library").glob("L02.*"), out / "scores" / "L02.json"]
    kept = {path: path.stat().st_mtime_ns for path in (out / "library").glob("L00.*")}
    for path in lost:
        path.unlink()
    torchrun(2, *command)
    names = [str(path.relative_to(out).with_suffix("")) for path in lost]
    assert all(content(one, name) == content(two, name) for name in names)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
