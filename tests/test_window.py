"""Windows: the whole text once, in order, under the ceilings; a library made in several."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
import torch
from tiny import SETTINGS

from puzzle import Result, search
from puzzle.config import load_config
from puzzle.errors import PuzzleError
from puzzle.parent import Parent
from puzzle.window import Window, windows

TEXTS = {
    "calibration": torch.arange(20 * 24).reshape(20, 24),
    "scoring": torch.zeros(2, 24, dtype=torch.long),
}
SEQUENCE = 24 * 64 * 4 * 4  # bytes of one sequence's streams at the 4 places of 3 layers
# of the scoring text: streams of the parent and of a child, and gradients of 4 draws
KEPT = 2 * 24 * 64 * 4 * (2 * 4 + 4 * 3)


@pytest.fixture
def parent(checkpoints: dict[str, Path]) -> Parent:
    return Parent(checkpoints["llama"], "llama")


def cut(parent: Parent, *settings: str) -> list[Window]:
    return windows(TEXTS, parent, load_config(None, list(settings)), "traced")


@pytest.mark.parametrize(("sequences", "count"), [(20, 1), (19, 2), (7, 3), (1, 20)])
def test_windows_keep_the_disk_ceiling_and_lose_nothing(
    parent: Parent, sequences: int, count: int
) -> None:
    found = cut(parent, f"ceiling.disk={KEPT + sequences * SEQUENCE} B")
    assert [window.count for window in found] == [count] * count
    for window in found:
        assert sum(map(len, window.parts.values())) <= sequences
    parts = [part for window in found for part in window.parts.values()]
    assert torch.equal(torch.cat(parts), TEXTS["calibration"])
    assert len({name for window in found for name in window.parts}) == len(parts)
    assert [step for window in found for step in window.share(7)] == list(range(7))


def test_a_search_that_looks_around_no_child_keeps_no_streams_of_one(parent: Parent) -> None:
    ceiling = f"ceiling.disk={KEPT} B"
    one = 2 * 24 * 64 * 4 * 4  # streams of the scoring text
    assert len(cut(parent, ceiling, "choose.rounds=1")) == -(-20 // (one // SEQUENCE))


def test_a_memory_ceiling_cuts_windows_and_leaves_room_to_train(parent: Parent) -> None:
    one = 24 * 64 * 4 * 6 * 4  # six streams of a sequence are a quarter of it
    assert len(cut(parent, f"ceiling.memory={5 * one} B")) == 4
    small, large = (cut(parent, f"ceiling.memory={size} GiB")[0].room_bytes for size in (1, 9))
    assert 0 < small < 2**30
    assert large - small == 6 * 2**30  # three quarters of what is more


def test_too_low_a_ceiling_says_what_is_needed(parent: Parent) -> None:
    with pytest.raises(PuzzleError, match=r"ceiling\.disk leaves 0 B for streams"):
        cut(parent, f"ceiling.disk={KEPT} B")
    with pytest.raises(PuzzleError, match=r"ceiling\.memory .* raise it"):
        cut(parent, "ceiling.memory=1 KiB")


def test_a_search_in_windows_deletes_what_it_consumed(tiny_parent: str, tmp_path: Path) -> None:
    """Three windows and one piece in training at a time; running again traces nothing again."""
    streams, kept = 32 * 64 * 4 * 4, 8 * 32 * 64 * 4 * (2 * 4 + 2 * 3)
    ceilings = [f"ceiling.disk={kept + 12 * streams} B", "ceiling.memory=4 MiB"]
    settings = [*SETTINGS, *ceilings]
    found = search(tiny_parent, out=tmp_path / "run", settings=settings)
    left = found.run.names("trace/parent/calibration/*/h000*")
    assert len(left) == 1
    assert "/w002." in left[0]
    halves = found.run.names("library/*")
    assert all("trained" in found.run.info(name) for name in halves)
    written = {name: found.run.info(name) for name in halves}
    again = search(tiny_parent, out=tmp_path / "run", settings=settings)
    assert {name: again.run.info(name) for name in halves} == written
    assert again.architecture == found.architecture


def test_training_in_small_groups_makes_the_same_library(
    tiny_parent: str, result: Result, tmp_path: Path
) -> None:
    """Memory decides how many pieces train at once, not what becomes of them."""
    found = search(tiny_parent, out=tmp_path / "run", settings=[*SETTINGS, "ceiling.memory=8 MiB"])
    names = result.run.names("library/*")
    assert names == found.run.names("library/*")
    assert len(found.run.names("trace/parent/calibration/*/h*")) == 4  # one window, kept
    for name in names:
        one, other = result.run.load_tensors(name), found.run.load_tensors(name)
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_coupled_distillation_trains_whole_blocks(tiny_parent: str, tmp_path: Path) -> None:
    """Each from its halves, ending no worse; the child holds exactly what was trained."""
    asked = tmp_path / "budget.yaml"
    text = (resources.files("puzzle") / "budgets/h100-1gpu.yaml").read_text()
    asked.write_text(text.partition("targets:")[0] + "targets: {throughput: 1.1x}\n")
    narrow = ["space.attention=[100%,50%]", "space.ffn=[100%,ffn512]", "distill.coupled=true"]
    settings = [*SETTINGS, *narrow]
    found = search(tiny_parent, budget=str(asked), out=tmp_path / "run", settings=settings)
    whole = found.run.names("library/L00.block=*")
    blocks = [name.partition("=")[2] for name in whole]
    assert blocks == ["gqa2+ffn1024", "gqa2+ffn512", "gqa4+ffn512"]
    scores = found.run.load("scores/L00")
    for name, block in zip(whole, blocks):
        losses = found.run.info(name)
        assert losses.keys() == {"composed", "trained"}
        assert scores[block]["loss"] == pytest.approx(min(losses.values()), rel=1e-3)
