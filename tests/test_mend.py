"""A mended child: nearer to the parent on its own stream, kept only where held-out text agrees."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from puzzle import mend as module
from puzzle import records
from puzzle.assemble import assemble, from_weights, gather
from puzzle.blocks.variant import Block
from puzzle.config import Mend
from puzzle.library import Library
from puzzle.measure import kl_of
from puzzle.mend import Aim, mend, refit
from puzzle.menu import Choice
from puzzle.result import Result
from puzzle.run import Run
from puzzle.window import Window

SPLITS = ["calibration/w000.p000"]  # of the finished search
OPTIONS = Mend(tokens=4_096, batch_tokens=512)
BLOCKS = tuple(map(Block.parse, ("gqa1+ffn256", "noop+ffn512", "gqa2+noop")))


class Affine(nn.Module):
    """A half of one matrix with a bias, named as attention's last one is."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.o_proj = nn.Linear(features, features)
        self.requires_grad_(False)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        return stream + self.o_proj(stream.tanh())


def miss(half: nn.Module, wanted: Aim) -> float:
    """Weighted squared distance from where the half comes out to where it should."""
    return float(((half(wanted.enter) - wanted.leave).square().sum(-1) * wanted.weight).sum())


def aim(half: nn.Module, noise: float = 0.0) -> Aim:
    """Streams that another matrix would leave; token weights differ."""
    draw = torch.Generator().manual_seed(0)
    enter = torch.randn(16, 40, 6, generator=draw)
    other = half.o_proj.weight + torch.randn(6, 6, generator=draw)
    leave = enter + nn.functional.linear(enter.tanh(), other, half.o_proj.bias)
    leave += noise * torch.randn(leave.shape, generator=draw)
    return Aim(enter, leave, torch.rand(16, 40, generator=draw))


def test_a_half_that_can_reach_the_aim_reaches_it() -> None:
    half = Affine(6)
    wanted = aim(half)
    before = miss(half, wanted)
    refit(half, half, wanted, 2)
    assert miss(half, wanted) < 1e-4 * before


def test_a_solution_that_held_out_sequences_refuse_is_not_kept() -> None:
    half = Affine(6)
    wanted = aim(half)
    start = half.o_proj.weight.clone()
    leave = wanted.leave.clone()
    leave[-2:] = half(wanted.enter)[-2:]
    refit(half, half, Aim(wanted.enter, leave, wanted.weight), 2)
    assert torch.equal(half.o_proj.weight, start)


def test_a_mended_child_makes_good_what_is_wrong_with_its_blocks(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All last matrices are halved; on text that did not teach, the stream is mostly repaired."""
    layer_of = Library.layer

    def damaged(self: Library, layer: int, block: Block) -> nn.Module:
        layer_module = layer_of(self, layer, block)
        for name, weight in layer_module.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.data = weight / 2
        return layer_module

    own = library.parent.blocks
    monkeypatch.setattr(Library, "layer", damaged)
    mended = mend(library, own, SPLITS, OPTIONS, name="children/test/damaged", inputs="print")
    halved = {
        name: tensor / 2 if name.endswith(("o_proj.weight", "down_proj.weight")) else tensor
        for name, tensor in gather(library, own).items()
    }
    tokens = library.run.load_tensors(records.tokens("scoring"))["tokens"]
    with torch.no_grad():
        parent, plain, near = (
            from_weights(library, own, weights)(tokens, use_cache=False).logits
            for weights in (gather(library, own), halved, mended)
        )
    assert (near - parent).norm() < 0.2 * (plain - parent).norm()


def test_the_parent_needs_no_mending(library: Library) -> None:
    own = library.parent.blocks
    mended = mend(library, own, SPLITS, OPTIONS, name="children/test/parent", inputs="print")
    for name, tensor in assemble(library, own).state_dict().items():
        if name in mended:
            torch.testing.assert_close(mended[name], tensor, rtol=1e-4, atol=1e-6)


def test_training_brings_a_child_nearer_than_the_refit_alone(library: Library) -> None:
    def kl(options: Mend) -> float:
        weights = mend(
            library, BLOCKS, SPLITS, options, name="children/test/kl", inputs=str(options)
        )
        return kl_of(library, from_weights(library, BLOCKS, weights))

    longer = OPTIONS.model_copy(update={"tokens": 32_768})
    assert kl(longer) < 0.97 * kl(Mend(tokens=0))


def test_layers_that_training_leads_astray_stay_as_they_were_refit(library: Library) -> None:
    astray, refit_alone = OPTIONS.model_copy(update={"learning_rate": 1.0}), Mend(tokens=0)
    one, two = (
        mend(library, BLOCKS, SPLITS, options, name="children/test/astray", inputs=str(options))
        for options in (astray, refit_alone)
    )
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_a_killed_mending_goes_on_to_the_same_tensors(
    library: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = mend(library, BLOCKS, SPLITS, OPTIONS, name="children/test/whole", inputs="print")
    saved: list[str] = []
    save = Run.save_tensors

    def dying(self: Run, name: str, *rest: object) -> None:
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(name)
        save(self, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Run, "save_tensors", dying)
    with pytest.raises(KeyboardInterrupt):
        mend(library, BLOCKS, SPLITS, OPTIONS, name="children/test/killed", inputs="print")
    monkeypatch.undo()
    resumed = mend(library, BLOCKS, SPLITS, OPTIONS, name="children/test/killed", inputs="print")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    monkeypatch.setattr(module, "mend_layer", lambda *_: pytest.fail("mended again"))
    mend(library, BLOCKS, SPLITS, OPTIONS, name="children/test/killed", inputs="print")


def test_a_child_that_mending_hurts_stays_as_it_was(
    library: Library, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage in place of mending: the KL on the scoring text refuses it."""
    search = sys.modules["puzzle.search"]
    choice = Choice.from_record(result.solution["models"]["child"])
    plain = gather(library, choice.blocks)
    noise = torch.Generator().manual_seed(0)
    worse = {
        name: weight + weight.std() * torch.randn(weight.shape, generator=noise)
        if name.endswith("down_proj.weight")
        else weight
        for name, weight in plain.items()
    }
    monkeypatch.setattr(search, "mend", lambda *_, **__: worse)
    window = Window(0, 1, dict.fromkeys(SPLITS, torch.empty(0)), "inputs")
    child = search._mended(library, window, OPTIONS, "print", choice, "children/test/hurt")  # type: ignore[attr-defined]
    kept = dict(child.named_parameters())
    assert all(torch.equal(kept[name], weight) for name, weight in plain.items())
