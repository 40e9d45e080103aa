"""What every variant keeps to in every family: text, cost, start, one step, export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from tiny import FAMILIES
from torch import nn
from transformers import AutoModelForCausalLM

import puzzle
from puzzle.architecture import Architecture
from puzzle.blocks.attention import initial_attention, keep_groups
from puzzle.blocks.ffn import initial_ffn
from puzzle.blocks.own import OwnVariant
from puzzle.blocks.sizes import Matrix, Sizes
from puzzle.blocks.variant import (
    ATTENTIONS,
    FFN,
    FFNS,
    GQA,
    Block,
    Groups,
    LinearMap,
    MoE,
    NoOp,
    Variant,
)
from puzzle.budget import Workload
from puzzle.distill import begin
from puzzle.export import modeling_puzzle
from puzzle.export.checkpoint import write_checkpoint
from puzzle.export.targets import refusal
from puzzle.hardware.devices import device
from puzzle.hardware.kernels import Roofline
from puzzle.hardware.modeled import Modeled
from puzzle.hardware.roofline import block_cost
from puzzle.hardware.source import passes
from puzzle.lesson import Lesson
from puzzle.modules import Weights, build_layer, build_model, load
from puzzle.parent import Parent
from puzzle.run import Run
from puzzle.space import layer_blocks, pieces
from puzzle.trace import trace
from puzzle.window import Window

LAYER = 2
WORKLOAD = Workload(prompt_tokens=16, new_tokens=4, batches=(2,), weights="float32", kv="float32")


class Bottleneck(nn.Module):
    """Into a few channels and out again."""

    def __init__(self, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(hidden_size, rank, bias=False)
        self.down_proj = nn.Linear(rank, hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.up_proj(hidden_states))


class Mean(nn.Module):
    """The mean of all tokens so far, through one matrix."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        counts = torch.arange(1, hidden_states.shape[1] + 1)[:, None]
        return self.out(hidden_states.cumsum(dim=1) / counts), None


@dataclass(frozen=True)
class LowRank(OwnVariant):
    """A user's FFN."""

    rank: int
    half: ClassVar[Literal["attention", "ffn"]] = "ffn"
    pattern: ClassVar[str] = r"lowrank([1-9]\d*)"
    examples: ClassVar[tuple[str, ...]] = ("lowrank8",)

    def __str__(self) -> str:
        return f"lowrank{self.rank}"

    def matrices(self, sizes: Sizes) -> tuple[Matrix, ...]:
        return Matrix(sizes.hidden_size, self.rank), Matrix(self.rank, sizes.hidden_size)

    def module(self, config: Any) -> nn.Module:
        return Bottleneck(config.hidden_size, self.rank)

    def initial(self, parent: Weights) -> Weights:
        hidden = len(parent["post_attention_layernorm.weight"])
        into = torch.eye(hidden)[: self.rank]
        return {"up_proj.weight": into, "down_proj.weight": torch.zeros(hidden, self.rank)}


@dataclass(frozen=True)
class Average(OwnVariant):
    """A user's attention."""

    half: ClassVar[Literal["attention", "ffn"]] = "attention"
    pattern: ClassVar[str] = "average"
    examples: ClassVar[tuple[str, ...]] = ("average",)

    def __str__(self) -> str:
        return "average"

    def matrices(self, sizes: Sizes) -> tuple[Matrix, ...]:
        return (Matrix(sizes.hidden_size, sizes.hidden_size),)

    def module(self, config: Any) -> nn.Module:
        return Mean(config.hidden_size)

    def initial(self, parent: Weights) -> Weights:
        return {"out.weight": torch.eye(len(parent["input_layernorm.weight"]))}


OWN = (LowRank, Average)
CASES = [
    *("gqa2+noop", "gqa1+noop", "gqa2w4+noop", "gqa1w8+noop", "groups1+noop", "groups1w8+noop"),
    *("linear+noop", "average+noop"),
    *("noop+ffn96", "noop+ffn33", "noop+moe3", "noop+moe1", "noop+linear", "noop+lowrank8"),
    "noop+noop",
]


@pytest.fixture(scope="module", autouse=True)
def own_variants() -> Any:
    """A user's variants, known to this file only."""
    for kind in OWN:
        puzzle.add_variant(kind)
        puzzle.add_variant(kind)
    puzzle.register()
    yield
    for kind in OWN:
        (ATTENTIONS if kind.half == "attention" else FFNS).pop(kind.__name__)
        modeling_puzzle.OWN.pop(kind.__name__)


@pytest.fixture(params=CASES)
def half(request: pytest.FixtureRequest) -> Block:
    """Every kind of half in turn."""
    return Block.parse(request.param)


@pytest.fixture
def parent(family: str, half: Block, checkpoints: dict[str, Path]) -> Parent:
    """A parent that can give the half."""
    opened = Parent(checkpoints[family], family)
    own = opened.blocks[LAYER]
    if not (half.attention.suits(own.attention) and half.ffn.suits(own.ffn)):
        pytest.skip("the family has no such half")
    return opened


def initial(parent: Parent, half: Block) -> Weights:
    """The half as it starts from the parent's layer."""
    weights, shape = parent.layer_weights(LAYER), parent.shape
    parts = shape.experts if isinstance(parent.blocks[LAYER].ffn, MoE) else shape.intermediate_size
    if isinstance(half.attention, Groups):
        return keep_groups(half.attention, weights, shape.head_dim, torch.eye(shape.heads))
    return initial_attention(half.attention, weights, shape.head_dim) | initial_ffn(
        half.ffn, weights, torch.arange(parts)
    )


def test_its_text_reads_back(half: Block) -> None:
    assert Block.parse(str(half)) == half


def test_it_counts_what_its_module_holds(half: Block, parent: Parent) -> None:
    layer = build_layer(parent.config, half)
    held = sum(parameter.numel() for parameter in layer.parameters())
    assert parent.shape.block_params(half) == held
    cost = block_cost(parent.shape, half, workload=WORKLOAD, batch=2, device=device("h100-sxm"))
    assert (cost.params, cost.weight_bytes) == (held, 4 * held)
    idle = half == Block(NoOp(), NoOp())
    assert (cost.prefill_s > 0) == (cost.decode_s > 0) == (not idle)
    source = Modeled(Roofline(device("h100-sxm")), parent.shape, WORKLOAD, gpus=2)
    assert all((source.half(half, step).seconds > 0) == (not idle) for step in passes(source, 2))


def test_it_starts_from_the_parent_and_learns(
    half: Block, parent: Parent, tokens: torch.Tensor
) -> None:
    weights = initial(parent, half)
    layer = build_layer(parent.config, half, weights).requires_grad_()
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    hidden = parent.embed(tokens)
    wanted = parent.layer(LAYER)(hidden, **parent.context(hidden, parent.layer(LAYER).window))
    before = (layer(hidden, **parent.context(hidden, layer.window)) - wanted).square().mean()
    if half == Block(NoOp(), NoOp()):
        assert torch.equal(layer(hidden), hidden)
        return
    before.backward()
    with torch.no_grad():
        steps = [0 if p.grad is None else p.grad.square().sum() for p in layer.parameters()]
        size = 1e-2 * before.detach() / sum(steps)
        for parameter in layer.parameters():
            if parameter.grad is not None:
                parameter -= size * parameter.grad
        after = (layer(hidden, **parent.context(hidden, layer.window)) - wanted).square().mean()
    assert after < before


def test_the_parents_own_size_is_the_parents_own_half(
    family: str, checkpoints: dict[str, Path]
) -> None:
    parent = Parent(checkpoints[family], family)
    for layer, block in enumerate(parent.blocks):
        own = parent.layer_weights(layer)
        parts = torch.arange(getattr(block.ffn, "experts", parent.shape.intermediate_size))
        made = initial_attention(block.attention, own, parent.shape.head_dim)
        made |= initial_ffn(block.ffn, own, parts.flip(0))
        assert made.keys() == own.keys()
        assert all(torch.equal(made[name], own[name]) for name in own)


def test_its_export_loads_in_hugging_face(
    half: Block, parent: Parent, tokens: torch.Tensor, tmp_path: Path
) -> None:
    whole = parent.blocks[0]
    blocks = (whole, half, whole)
    weights = parent.outside_weights()
    for layer, block in enumerate(blocks):
        own = initial(parent, half) if block == half else parent.layer_weights(0)
        weights |= {f"model.layers.{layer}.{name}": tensor for name, tensor in own.items()}
    child = build_model(parent.config, blocks)
    load(child, {"lm_head.weight": weights[parent.head_name]} | weights)
    write_checkpoint(tmp_path / "hf", parent, Architecture("tiny", blocks), weights, card="")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    with torch.no_grad():
        expected, found = child(tokens).logits, loaded(tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_last_map_of_a_users_variant_is_refit(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    parent, run = Parent(checkpoints["llama"], "llama"), Run(tmp_path)
    text = torch.randint(0, 97, (192, 24), generator=torch.Generator().manual_seed(4))
    window = Window(0, 1, {"calibration/all": text}, "inputs")
    trace(run, parent, {"scoring": text[:32], **window.parts}, samples=4, seed=0)
    losses = begin(Lesson.read(run, parent, LAYER, window), Block(NoOp(), LowRank(64))).losses
    assert losses["refit"] < 0.95 * losses["sliced"]


def test_what_engines_refuse_is_said_before(half: Block) -> None:
    assert refusal("hf", 0, half) is None
    served = {type(half.attention), type(half.ffn)} <= {GQA, FFN, NoOp} and not half.attention.sees
    assert (refusal("vllm", 1, half) is None) == served


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_space_offers_what_the_family_has(family: str, checkpoints: dict[str, Path]) -> None:
    parent = Parent(checkpoints[family], family)
    space = puzzle.Config.model_validate({}).space
    made = pieces(layer_blocks(parent.blocks, space, "hf"), parent.blocks)
    kinds: list[set[type[Variant]]] = [
        {type(half.ffn) for half in layer if half.ffn != NoOp()} for layer in made
    ]
    assert kinds == [{type(block.ffn), LinearMap} for block in parent.blocks]


def test_a_folder_with_a_variant_that_was_not_added_says_so() -> None:
    with pytest.raises(ValueError, match=r"user-defined variant Other; .* puzzle\.add_variant"):
        modeling_puzzle.own_module(None, {"kind": "Other"})


def test_a_class_that_says_too_little_names_what_is_missing() -> None:
    @dataclass(frozen=True)
    class Half(OwnVariant):
        half: ClassVar[Literal["attention", "ffn"]] = "ffn"

        def __str__(self) -> str:
            return "half"

    missing = "variant Half lacks pattern, examples, initial, matrices, module"
    with pytest.raises(puzzle.PuzzleError, match=missing):
        puzzle.add_variant(Half)


def test_a_pattern_that_does_not_read_its_example_is_refused() -> None:
    @dataclass(frozen=True)
    class Odd(LowRank):
        examples: ClassVar[tuple[str, ...]] = ("odd8",)

    with pytest.raises(puzzle.PuzzleError, match="reads its own example 'odd8' as None"):
        puzzle.add_variant(Odd)


def test_a_text_form_that_is_taken_is_refused() -> None:
    @dataclass(frozen=True)
    class Again(LowRank):
        pass

    with pytest.raises(puzzle.PuzzleError, match="is written lowrank8, as LowRank is"):
        puzzle.add_variant(Again)
