"""Blockwise distillation: every way to begin, the closed-form refit, and what training adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from puzzle import records
from puzzle.blocks.ffn import kept_channels
from puzzle.blocks.refit import RIDGE, NormalEquations, token_weights
from puzzle.blocks.variant import FFN, Block, NoOp
from puzzle.config import Distill
from puzzle.distill import Pupil, begin, distill, train
from puzzle.fisher import per_token
from puzzle.lesson import Lesson, Streams
from puzzle.library import Library
from puzzle.modules import Weights, build_layer
from puzzle.parent import Parent
from puzzle.run import Run
from puzzle.trace import trace
from puzzle.window import Window

LAYER = 1
HALVES = ["gqa1+noop", "linear+noop", "noop+ffn32", "noop+ffn1", "noop+linear"]
OPTIONS = Distill(tokens=19_200, batch_tokens=480, learning_rate=2e-3)

TOKENS = torch.randint(0, 97, (192, 24), generator=torch.Generator().manual_seed(4))
WINDOW = Window(
    0, 1, {"calibration/w000.p000": TOKENS[:100], "calibration/w000.p001": TOKENS[100:]}, "x"
)
STEPS = range(OPTIONS.tokens // OPTIONS.batch_tokens)

Opened = Callable[[str], tuple[Run, Parent]]


@pytest.fixture(scope="module")
def traced(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """A family's parent with its trace, made once."""
    made: dict[str, tuple[Run, Parent]] = {}

    def open_traced(family: str) -> tuple[Run, Parent]:
        if family not in made:
            run = Run(tmp_path_factory.mktemp("distill") / family)
            parent = Parent(checkpoints[family], family)
            trace(run, parent, {"scoring": TOKENS[:8], **WINDOW.parts}, samples=4, seed=0)
            made[family] = run, parent
        return made[family]

    return open_traced


@pytest.fixture(scope="module")
def lesson(traced: Opened) -> Lesson:
    return Lesson.read(*traced("llama"), LAYER, WINDOW)


def hidden_of_ffn(lesson: Lesson, half: Block, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """What enters `down_proj` on the streams that teach [N, F], by the formula."""
    layer = build_layer(lesson.parent.config, half, weights)
    assert layer.mlp is not None
    assert layer.post_attention_layernorm is not None
    with torch.no_grad():
        normed = layer.post_attention_layernorm(lesson.teach.middle)
        gate = torch.nn.functional.silu(layer.mlp.gate_proj(normed))
        return (gate * layer.mlp.up_proj(normed)).flatten(0, 1)


def test_the_refit_solves_weighted_least_squares() -> None:
    """Against torch.linalg.lstsq on the same problem, the ridge written as more rows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 20, generator=generator)
    y = torch.randn(300, 7, generator=generator)
    start = torch.randn(7, 20, generator=generator)
    weight = torch.rand(300, generator=generator)
    weight[::2] = 0  # tokens that do not count

    batches = [(x[:200], y[:200], weight[:200]), (x[200:], y[200:], weight[200:])]
    solved = NormalEquations.of(batches, 20, 7).solve(start)

    root = weight.double().sqrt()[:, None]
    ridge = RIDGE * (root * x).square().sum() / 20
    rows = torch.cat([root * x.double(), ridge.sqrt() * torch.eye(20).double()])
    wanted = torch.cat([root * y.double(), ridge.sqrt() * start.double().T])
    expected = torch.linalg.lstsq(rows, wanted).solution.T
    torch.testing.assert_close(solved.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_excess_is_what_a_matrix_misses_more_than_none() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(300, size, generator=generator) for size in (20, 7))
    weight = torch.rand(300, generator=generator)
    matrix = torch.randn(7, 20, generator=generator)
    missed = ((x @ matrix.T - y).square().sum(-1) - y.square().sum(-1)).double()
    found = NormalEquations.of([(x, y, weight)], 20, 7).excess(matrix)
    assert found == pytest.approx(float((missed * weight).sum()), rel=1e-5)


def test_the_refit_keeps_what_no_token_speaks_of() -> None:
    start = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    x = torch.zeros(10, 5)
    x[:, 0] = 1.0
    solved = NormalEquations.of([(x, torch.ones(10, 3), torch.ones(10))], 5, 3).solve(start)
    torch.testing.assert_close(solved[:, 1:], start[:, 1:])
    torch.testing.assert_close(solved[:, 0], torch.ones(3), rtol=1e-2, atol=1e-2)
    assert torch.equal(NormalEquations.of([], 5, 3).solve(start), start)


def test_token_weights_undo_the_size_of_a_token() -> None:
    stream = torch.tensor([[[3.0, 4.0], [0.3, 0.4], [300.0, 400.0]]])
    weight = token_weights(stream)
    torch.testing.assert_close(weight.mean(), torch.tensor(1.0))
    energy = weight * stream.square().sum(-1)
    torch.testing.assert_close(energy, energy[:, :1].expand_as(energy))


@pytest.mark.parametrize("width", [1, 32, 95])
def test_every_width_reads_one_gram_matrix(lesson: Lesson, width: int) -> None:
    """The submatrix equals the equations of the sliced FFN computed on their own."""
    half = Block(NoOp(), FFN(width))
    x = hidden_of_ffn(lesson, half, lesson.starts(half)["sliced"])
    y = (lesson.teach.leave - lesson.teach.middle).flatten(0, 1)
    outputs = y.shape[1]
    direct = NormalEquations.of([(x, y, lesson.teach.weight.flatten())], width, outputs)
    shared = lesson.ffn_statistics[0].features(kept_channels(lesson.channels["sliced"], width))
    torch.testing.assert_close(shared.gram, direct.gram, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shared.cross, direct.cross, rtol=1e-4, atol=1e-4)


def test_channels_come_by_what_they_contribute(lesson: Lesson) -> None:
    own = Block(NoOp(), lesson.block.ffn)
    x = hidden_of_ffn(lesson, own, lesson.starts(own)["sliced"])
    contribution = x.abs().mean(0) * lesson.weights["mlp.down_proj.weight"].norm(dim=0)
    ordered = contribution[lesson.channels["sliced"]]
    assert sorted(lesson.channels["sliced"].tolist()) == list(range(96))
    assert (ordered[:-1] >= ordered[1:] * (1 - 1e-5)).all()


def test_fisher_ranks_channels_by_what_removing_each_costs(lesson: Lesson) -> None:
    """Against the score of the layer with that one channel set to zero."""
    own = Block(NoOp(), lesson.block.ffn)
    whole = lesson.starts(own)["sliced"]

    def without(channel: int) -> float:
        down = whole["mlp.down_proj.weight"].clone()
        down[:, channel] = 0
        module = lesson.built(own, whole | {"mlp.down_proj.weight": down})
        with torch.no_grad():
            change = lesson.output(module, lesson.judge) - lesson.judge.leave
        return float(per_token(lesson.gradient, change).mean())

    costs = [without(int(channel)) for channel in lesson.channels["fisher"]]
    assert costs == sorted(costs, reverse=True)


def test_heads_are_missed_by_what_they_write_and_what_it_costs(lesson: Lesson) -> None:
    """Against the attention half with a set of heads unheard, whatever the set."""
    own, size = Block(lesson.block.attention, NoOp()), lesson.parent.shape.head_dim
    weights = lesson.starts(own)["sliced"]

    def without(heads: list[int], streams: Streams) -> torch.Tensor:
        output = weights["self_attn.o_proj.weight"].clone()
        output.unflatten(1, (-1, size))[:, heads] = 0
        module = lesson.built(own, weights | {"self_attn.o_proj.weight": output})
        with torch.no_grad():
            return module.attend(streams.enter, **lesson.context)

    for gone in ([0], [3], [1, 2], [0, 1, 3]):
        lost = (without([], lesson.teach) - without(gone, lesson.teach)).square().sum(-1)
        energy = float((lost * lesson.teach.weight).sum())
        cost = lesson.heads["contribution"][gone][:, gone].sum()
        assert float(cost) == pytest.approx(energy, rel=1e-3)
        change = without(gone, lesson.judge) - without([], lesson.judge)
        products = torch.einsum("kstd,std->kst", lesson.gradient, change)
        cost = lesson.heads["fisher"][gone][:, gone].sum()
        assert float(cost) == pytest.approx(float(products.square().sum()), rel=1e-3)


def test_every_loss_is_nothing_at_the_parent_and_falls_in_training(lesson: Lesson) -> None:
    own, half = Block(NoOp(), lesson.block.ffn), Block.parse("noop+ffn32")
    sliced = lesson.starts(half)["sliced"]
    for kind in ("mse", "cosine", "fisher"):
        perfect = lesson.built(own, lesson.starts(own)["sliced"])
        assert float(lesson.loss(perfect, lesson.teach, kind)) < 1e-6
        begun = Pupil(half, sliced, {"sliced": 1e9})
        options = OPTIONS.model_copy(update={"loss": kind})
        (pupil,) = train(lesson, [begun], options, range(10))
        before, after = (
            float(lesson.loss(lesson.built(half, weights), lesson.teach, kind).detach())
            for weights in (sliced, pupil.weights)
        )
        assert after < before


def test_products_in_bfloat16_train_float32_masters(lesson: Lesson) -> None:
    """Another dtype of the products: nearly the same is learned, in float32 weights."""
    half = Block.parse("noop+ffn32")
    sliced = lesson.starts(half)["sliced"]
    learned: list[Pupil] = []
    for dtype in ("float32", "bfloat16"):
        options = OPTIONS.model_copy(update={"dtype": dtype})
        learned += train(lesson, [Pupil(half, sliced, {"sliced": 1e9})], options, range(10))
    (name, exact), *_ = learned[0].weights.items()
    rough = learned[1].weights[name]
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert not torch.equal(rough, rough.bfloat16().float())
    losses = [pupil.losses["trained"] for pupil in learned]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_the_fisher_metric_is_the_expected_square_of_a_gradient(lesson: Lesson) -> None:
    change = torch.randn(64, generator=torch.Generator().manual_seed(3))
    expected = (lesson.gradient @ change).square().mean()
    torch.testing.assert_close((change @ lesson.metric).square().sum(), expected)


def test_the_parents_own_halves_lose_nothing(family: str, traced: Opened) -> None:
    """Whatever the family, its window and its biases: the parent is its own perfect pupil."""
    lesson = Lesson.read(*traced(family), LAYER, WINDOW)
    for half in (Block(lesson.block.attention, NoOp()), Block(NoOp(), lesson.block.ffn)):
        sliced = lesson.starts(half)["sliced"]
        for weights in (sliced, lesson.refit(half, sliced, "sliced")):
            module = lesson.built(half, weights)
            assert float(lesson.loss(module, lesson.teach)) < 1e-6
            assert lesson.kl(module) < 1e-6


def test_a_layer_that_does_nothing_loses_one(lesson: Lesson) -> None:
    nothing = build_layer(lesson.parent.config, Block(NoOp(), NoOp()), {})
    idle = replace(lesson, layer=nothing)  # the other half does nothing either
    assert float(idle.loss(nothing, lesson.judge)) == 1


@pytest.mark.parametrize("half", HALVES)
def test_the_refit_is_better_on_the_tokens_that_teach(lesson: Lesson, half: str) -> None:
    block = Block.parse(half)
    sliced = lesson.starts(block)["sliced"]
    refit = lesson.refit(block, sliced, "sliced")
    losses = [
        float(lesson.loss(build_layer(lesson.parent.config, block, weights), lesson.teach).detach())
        for weights in (sliced, refit)
    ]
    if isinstance(block.ffn, NoOp):  # its target is the middle, the loss is behind the FFN
        assert losses[1] < 1.1 * losses[0]
    else:
        assert losses[1] < losses[0]


@pytest.fixture(scope="module")
def trained(lesson: Lesson) -> dict[tuple[str, str], Pupil]:
    """Every half trained from either initialization, by half and start."""
    starts = {}
    for half in map(Block.parse, HALVES):
        sliced = lesson.starts(half)["sliced"]
        for start, weights in (("sliced", sliced), ("refit", lesson.refit(half, sliced, "sliced"))):
            before = lesson.kl(lesson.built(half, weights))
            starts[str(half), start] = Pupil(half, weights, {"before": before})
    return dict(zip(starts, train(lesson, list(starts.values()), OPTIONS, STEPS)))


@pytest.mark.parametrize("start", ["sliced", "refit"])
@pytest.mark.parametrize("half", HALVES)
def test_training_lowers_the_score_from_each_initialization(
    lesson: Lesson, trained: dict[tuple[str, str], Pupil], half: str, start: str
) -> None:
    pupil = trained[half, start]
    kept = lesson.kl(lesson.built(pupil.piece, pupil.weights))
    assert kept == min(pupil.losses.values())
    if half != "noop+ffn1" and (half, start) != ("noop+linear", "refit"):
        assert kept < pupil.losses["before"]  # one channel learns little, a refit matrix nothing


@pytest.mark.parametrize("half", HALVES)
def test_no_variant_ends_worse_than_it_began(lesson: Lesson, half: str) -> None:
    """Even where training destroys it: the better start is kept, bit for bit."""
    begun = begin(lesson, Block.parse(half))
    wild = Distill(tokens=960, batch_tokens=480, learning_rate=100.0)
    (pupil,) = train(lesson, [begun], wild, range(2))
    assert pupil.losses["trained"] > min(begun.losses.values())
    assert same(pupil.weights, begun.weights)
    kept = lesson.kl(lesson.built(begun.piece, pupil.weights))
    assert kept == min(begun.losses.values())


def test_no_tokens_leave_the_initialization(lesson: Lesson) -> None:
    begun = begin(lesson, Block.parse("gqa1+noop"))
    (pupil,) = train(lesson, [begun], Distill(tokens=0), range(0))
    assert same(pupil.weights, begun.weights)


def same(one: Weights, other: Weights) -> bool:
    """Equal names and equal bits."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


SHORT = Distill(tokens=960, batch_tokens=480)


def named(inputs: str) -> Window:
    """The window with another fingerprint."""
    return replace(WINDOW, inputs=inputs)


MENU = [list(map(Block.parse, ("gqa1+noop", "noop+ffn32", "noop+linear")))] * 3


def test_the_library_is_written_once_and_read_as_weights(traced: Opened) -> None:
    run, parent = traced("llama")
    written = distill(run, parent, MENU, SHORT, named("trace"))
    stamps = {path: path.stat().st_mtime_ns for path in run.folder.glob("library/*")}
    assert len(stamps) == 9
    assert distill(run, parent, MENU, SHORT, named("trace")) == written
    assert stamps == {path: path.stat().st_mtime_ns for path in run.folder.glob("library/*")}

    weights = Library(run, parent).weights(2, Block.parse("gqa1+ffn32"))
    expected = build_layer(parent.config, Block.parse("gqa1+ffn32")).state_dict()
    assert {n: w.shape for n, w in weights.items()} == {n: w.shape for n, w in expected.items()}
    assert distill(run, parent, MENU, SHORT, named("another trace")) != written
    assert all(path.stat().st_mtime_ns != stamp for path, stamp in stamps.items())


def test_a_killed_library_goes_on_to_the_same_bits(
    traced: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed inside a layer, where its halves are trained together."""
    run, parent = traced("llama")
    inputs = distill(run, parent, MENU, SHORT, named("whole"))
    names = [records.piece(layer, half) for layer, halves in enumerate(MENU) for half in halves]
    whole = {name: {n: w.clone() for n, w in run.load_tensors(name).items()} for name in names}

    save, saved = Run.save_tensors, []

    def dying(self: Run, name: str, *record: Any) -> None:
        if len(saved) == 4:
            raise KeyboardInterrupt
        saved.append(name)
        save(self, name, *record)

    monkeypatch.setattr(Run, "save_tensors", dying)
    with pytest.raises(KeyboardInterrupt):
        distill(run, parent, MENU, SHORT, named("killed"))
    monkeypatch.undo()
    assert distill(run, parent, MENU, SHORT, named("killed")) != inputs
    assert all(same(run.load_tensors(name), whole[name]) for name in names)
