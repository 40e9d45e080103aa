"""What a GPU computes is what the CPU does, but for rounding. Skipped where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import SETTINGS

from puzzle import Result, checkpoints, search
from puzzle.assemble import assemble
from puzzle.config import Heal
from puzzle.device import current, placed
from puzzle.hardware.graphs import captured_or_launched, warm_s
from puzzle.heal import Course, heal
from puzzle.library import Library
from puzzle.modules import Weights
from puzzle.parent import open_parent
from puzzle.run import Run
from puzzle.sample import sample
from puzzle.training import Progress, Texts

STEPS = 8
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
UNTRAINED = [*SETTINGS, "distill.tokens=0"]


@pytest.fixture(scope="module")
def far(tiny_parent: str, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A search on the GPU."""
    torch.cuda.reset_peak_memory_stats()
    found = search(tiny_parent, out=tmp_path_factory.mktemp("far") / "run", settings=UNTRAINED)
    assert torch.cuda.max_memory_allocated() > 2**20
    return found


@pytest.fixture(scope="module")
def near(tiny_parent: str, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The same search on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("puzzle.device.best", lambda: torch.device("cpu"))
        return search(tiny_parent, out=tmp_path_factory.mktemp("near") / "run", settings=UNTRAINED)


def test_a_gpu_scores_as_the_cpu_does(near: Result, far: Result) -> None:
    names = near.run.names("scores/L*")
    assert names == far.run.names("scores/L*")
    for name in names:
        wanted, found = (
            {block: score["loss"] for block, score in each.run.load(name).items()}
            for each in (near, far)
        )
        assert found == pytest.approx(wanted, rel=0.02, abs=1e-5)


def test_a_gpu_finds_the_same_child(near: Result, far: Result) -> None:
    wanted, found = (each.models["child"] for each in (near, far))
    assert found["blocks"] == wanted["blocks"]
    assert found["measured_kl"] == pytest.approx(wanted["measured_kl"], rel=0.02)


def test_a_killed_healing_goes_on(
    far: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "EVERY_S", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", 0)
    tokens = torch.randint(0, 4096, (10, 24), generator=torch.Generator().manual_seed(2))
    options = Heal(tokens=STEPS * 96, batch_tokens=96)
    library = Library(far.run, open_parent(far.architecture.parent))

    @placed
    def live(course: Course, dies_at: int = STEPS + 1) -> tuple[Weights, list[int]]:
        seen = []

        def mortal(progress: Progress) -> None:
            seen.append(progress.step)
            if progress.step == dies_at:
                raise KeyboardInterrupt

        child, teacher = (assemble(library, b) for b in (far.architecture.blocks, parent))
        texts = Texts(tokens.to(current()))
        return heal(course, child, teacher, texts, options, watch=mortal), seen

    parent = library.parent.blocks
    whole, killed = (
        Course(Run(tmp_path / name), "children/budget/healed", "inputs")
        for name in ("whole", "killed")
    )
    wanted, every = live(whole)
    assert len(every) == STEPS
    assert all(weight.device.type == "cuda" for weight in wanted.values())
    with pytest.raises(KeyboardInterrupt):
        live(killed, dies_at=5)
    _, rest = live(killed)
    assert rest == every[4:]
    one, two = (course.run.info(course.record)["losses"] for course in (whole, killed))
    assert [step["kl"] for step in two] == pytest.approx([step["kl"] for step in one], rel=0.02)


def test_a_gpu_writes(tiny_parent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puzzle.sample.MOST", 64)
    monkeypatch.setattr("puzzle.sample.LENGTH", 32)
    torch.cuda.reset_peak_memory_stats()
    out = tmp_path / "text.jsonl"
    count = sample(tiny_parent, out, 100)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert count == sum(row["tokens"] for row in rows) >= 100
    assert torch.cuda.max_memory_allocated() > 2**20


def test_a_pass_that_no_graph_holds_is_timed_all_the_same() -> None:
    x = torch.ones(64, 64, device="cuda")
    warm_s(lambda: x @ x)
    assert captured_or_launched([lambda: x @ x] * 3).sample_s() > 0
    stream = torch.cuda.current_stream()
    with pytest.warns(UserWarning, match="no CUDA graph"):
        assert captured_or_launched([lambda: (x @ x).sum().item()]).sample_s() > 0
    assert torch.cuda.current_stream() == stream
    assert torch.randn(8, device="cuda").isfinite().all()
    assert captured_or_launched([lambda: x @ x]).sample_s() > 0
