"""All that computes does so on the best device: here on one that is only said to be another."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("torch's one name for other devices spoils CUDA's", allow_module_level=True)

from content import content
from elsewhere import DEVICE, InSight, elsewhere
from safetensors.torch import load_file
from tiny import SETTINGS

from puzzle import Result, evaluate, prune, search
from puzzle.config import load_config
from puzzle.corpus import accuracy_items
from puzzle.device import (
    ONEDNN,
    best,
    current,
    drawn,
    fast_products,
    onednn_is_exact,
    placed,
    shuffled,
)
from puzzle.errors import PuzzleError
from puzzle.pretrain import pretrain
from puzzle.sample import sample

There = Callable[[], AbstractContextManager[InSight]]


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> There:
    """Within, the other device is the best there is."""
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # what it sees is that of a thread
    onednn_is_exact()  # multiplies on the CPU, once

    @contextmanager
    def within() -> Iterator[InSight]:
        with elsewhere() as seen, monkeypatch.context() as patch:
            patch.setattr("puzzle.device.best", lambda: DEVICE)
            yield seen

    return within


@pytest.fixture(scope="module")
def near(tiny_parent: str, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A search on the CPU; the runs that other tests share hold more than one search writes."""
    return search(tiny_parent, out=tmp_path_factory.mktemp("near") / "run", settings=SETTINGS)


def test_the_other_device_refuses_what_a_gpu_refuses(there: There) -> None:
    with there() as seen:
        far, near = torch.ones(2, 3).to(DEVICE), torch.ones(2, 3)
        with pytest.raises(RuntimeError, match="on the CPU, others on elsewhere:0"):
            far + near
        with pytest.raises(TypeError, match="numpy"):
            far.numpy()
        assert [each.device for each in (far[0], far + 1, far.split(1)[1])] == [DEVICE] * 3
        assert torch.equal((far + 1).cpu(), near + 1)
        assert (far @ far.T).device == DEVICE
        assert seen.matmuls == 0
        near @ near.T
        assert seen.matmuls == 1


def test_a_search_writes_the_same_run(
    there: There, near: Result, tiny_parent: str, tmp_path: Path
) -> None:
    """Bit for bit, and no matrix is multiplied on the CPU."""
    with there() as seen:
        far = search(tiny_parent, out=tmp_path / "run", settings=SETTINGS)
    assert seen.matmuls == 0
    one, two = near.run, far.run
    for kind in ("trace/**/*", "library/*", "scores/**/*", "solutions/*", "children/*/*"):
        names = two.names(kind)
        assert names
        assert names == one.names(kind)
        assert [name for name in names if content(one, name) != content(two, name)] == []


def test_a_run_is_compared_and_a_model_writes(
    there: There,
    near: Result,
    tiny_parent: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both to the bits of the CPU."""
    questions = accuracy_items()[:8]
    monkeypatch.setattr("puzzle.corpus.accuracy_items", lambda: questions)
    one, two = (shutil.copytree(near.run.folder, tmp_path / name) for name in ("near", "far"))
    with there() as seen:
        found = evaluate(two, lengths=[64])
        assert sample(tiny_parent, tmp_path / "far.jsonl", 50) > 50
    assert seen.matmuls == 0
    again = evaluate(one, lengths=[64])
    assert (found.cells, found.lines()) == (again.cells, again.lines())
    sample(tiny_parent, tmp_path / "near.jsonl", 50)
    assert (tmp_path / "far.jsonl").read_bytes() == (tmp_path / "near.jsonl").read_bytes()


def test_a_parent_is_pruned_and_a_checkpoint_learns(
    there: There, tiny_parent: str, tmp_path: Path
) -> None:
    asked = [*SETTINGS, "prune.tokens=256", "prune.light=256", "prune.candidates=2"]
    with there() as seen:
        pruned = prune(tiny_parent, target="0.6x", out=tmp_path / "pruned", settings=asked)
        models = [f"model={pruned.checkpoint}", f"teacher={tiny_parent}"]
        learned = pretrain(load_config(None, [*models, *SETTINGS]), tmp_path / "learned")
    assert seen.matmuls == 0
    before, after = (load_file(each / "model.safetensors") for each in (pruned.checkpoint, learned))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_fast_products_end_where_they_are_left() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    seen = []

    @fast_products()
    def dying() -> None:
        seen.append(torch.backends.cuda.matmul.fp32_precision)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dying()
    assert seen == ["tf32"]
    assert torch.backends.cuda.matmul.fp32_precision == before != "tf32"


def test_a_command_multiplies_float32_exactly_on_a_cpu() -> None:
    """Whoever multiplies: MKL, or oneDNN, which torch lets only where it may round."""
    draw = torch.Generator().manual_seed(1)
    left, right = (torch.randn(300, 700, generator=draw) for _ in range(2))
    product = placed(lambda: left @ right.T)()
    wanted = left.double() @ right.double().T
    assert (product - wanted).norm() < 1e-6 * wanted.norm()


def test_onednn_multiplies_where_it_is_exact() -> None:
    matmul = ONEDNN.matmul
    before = matmul.fp32_precision
    inside = placed(lambda: matmul.fp32_precision)()
    assert matmul.fp32_precision == before
    assert inside == ("bf16" if onednn_is_exact() else before)


def test_random_numbers_are_the_same_on_every_device(there: There) -> None:
    def both() -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(3)
        return [drawn((4, 5), generator).cpu(), shuffled(9, generator).cpu()]

    with there(), DEVICE:
        assert current() == DEVICE
        far = both()
    assert all(map(torch.equal, far, both()))
    assert sorted(far[1].tolist()) == list(range(9))


def test_every_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert best().type == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for rank, wanted in (("0", "cuda:0"), ("1", "cuda:1")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert str(best()) == wanted
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(PuzzleError, match=r"rank 2 .* no GPU of its own, torch sees 2; start 2 "):
        best()


def test_a_device_without_memory_is_one_sentence(there: There) -> None:
    @placed
    def command() -> None:
        raise torch.OutOfMemoryError("Tried to allocate 9 GiB.\nDetails.")

    wanted = r"out of memory on elsewhere:0 \(Tried to allocate 9 GiB.\); nothing"
    with there(), pytest.raises(PuzzleError, match=wanted):
        command()
