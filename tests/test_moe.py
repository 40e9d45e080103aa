"""Mixtures of experts: which experts stay, what they cost, how they are read and searched."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import MIXTURES, SETTINGS

from puzzle import search
from puzzle.blocks.moe import expert_contributions
from puzzle.blocks.sizes import Matrix
from puzzle.blocks.variant import Block, MoE, NoOp
from puzzle.budget import Workload
from puzzle.config import Distill, Space
from puzzle.distill import begin, train
from puzzle.errors import PuzzleError
from puzzle.fisher import corrected, per_token, relative_change
from puzzle.hardware.devices import device
from puzzle.hardware.roofline import ffn_cost
from puzzle.lesson import Lesson
from puzzle.modules import build_layer
from puzzle.parent import Parent, open_parent
from puzzle.run import Run
from puzzle.shape import Shape
from puzzle.space import layer_blocks
from puzzle.trace import trace
from puzzle.window import Window

LAYER = 0


@pytest.fixture(params=sorted(MIXTURES))
def parent(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Parent:
    """Every family with experts in turn."""
    return Parent(checkpoints[request.param], request.param)


@pytest.fixture
def lesson(parent: Parent, tmp_path: Path) -> Lesson:
    """Its first layer with the streams of random text."""
    tokens = torch.randint(0, 97, (64, 24), generator=torch.Generator().manual_seed(4))
    run = Run(tmp_path / "run")
    window = Window(0, 1, {"calibration/all": tokens}, "inputs")
    trace(run, parent, {"scoring": tokens[:16], **window.parts}, samples=4, seed=0)
    return Lesson.read(run, parent, LAYER, window)


def test_contributions_are_weights_times_norms() -> None:
    """Against a loop over tokens and experts."""
    generator = torch.Generator().manual_seed(0)
    x_ND, maps = torch.randn(9, 4, generator=generator), torch.randn(5, 4, 4, generator=generator)
    scores_NE = torch.rand(9, 5, generator=generator)
    weight_Nk, chosen_Nk = scores_NE.topk(2)

    def experts(x: torch.Tensor, chosen: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        said = torch.einsum("nkij,nj->nki", maps[chosen], x)
        return (weight[:, :, None] * said).sum(dim=1)

    expected = torch.zeros(5, dtype=torch.float64)
    for token in range(9):
        for slot in range(2):
            expert = int(chosen_Nk[token, slot])
            said = maps[expert] @ x_ND[token]
            expected[expert] += float(weight_Nk[token, slot] * said.norm())
    found = expert_contributions(lambda _: (scores_NE, weight_Nk, chosen_Nk), experts, x_ND)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_an_expert_that_no_token_takes_goes_first(lesson: Lesson) -> None:
    """With one expert's router row pushed far down it is last, and dropping it changes nothing."""
    name = "mlp.router.bias" if "mlp.router.bias" in lesson.weights else None
    if name is None:
        pytest.skip("the family's router has no bias to push with")
    weights = dict(lesson.weights)
    weights[name] = weights[name].clone()
    weights[name][1] = -1e6
    own = lesson.block
    layer = build_layer(lesson.parent.config, own, weights)
    pushed = Lesson(**{**vars_of(lesson), "weights": weights, "layer": layer})
    experts = lesson.parent.shape.experts
    assert pushed.experts[-1] == 1
    fewer = Block(NoOp(), MoE(experts - 1))
    module = build_layer(lesson.parent.config, fewer, pushed.starts(fewer)["sliced"])
    with torch.no_grad():
        torch.testing.assert_close(
            module.feed(lesson.judge.middle), layer.feed(lesson.judge.middle), rtol=1e-5, atol=1e-5
        )


def vars_of(lesson: Lesson) -> dict[str, object]:
    """The fields of a lesson, without what it has computed."""
    return {name: getattr(lesson, name) for name in Lesson.__dataclass_fields__}


def test_the_experts_kept_are_better_than_those_dropped(lesson: Lesson) -> None:
    count = lesson.parent.shape.experts
    half = Block(NoOp(), MoE(count // 2))
    best = lesson.kl(lesson.built(half, lesson.starts(half)["sliced"]))
    worst_first = Lesson(**vars_of(lesson))
    worst_first.__dict__["experts"] = lesson.experts.flip(0)
    assert best < lesson.kl(lesson.built(half, worst_first.starts(half)["sliced"]))


def test_halves_of_a_mixture_learn_from_where_they_begin(lesson: Lesson) -> None:
    """Experts are not refit; the linear map begins as nothing and its refit is better."""
    texts = ["noop+moe3", "noop+moe1", "noop+linear"]
    pupils = [begin(lesson, Block.parse(text)) for text in texts]
    for pupil in pupils[:2]:
        assert pupil.losses["refit"] == pupil.losses["sliced"]
    change = lesson.judge.middle - lesson.judge.leave
    fisher = float(per_token(lesson.gradient, change).mean())
    nothing = corrected(fisher, relative_change(change, lesson.judge.leave))
    assert pupils[2].losses["sliced"] == pytest.approx(nothing, rel=1e-4)
    assert pupils[2].losses["refit"] < pupils[2].losses["sliced"]
    options = Distill(tokens=6_000, batch_tokens=240, learning_rate=2e-3)
    for pupil, trained in zip(pupils[:2], train(lesson, pupils[:2], options, range(25))):
        assert trained.losses["trained"] < min(pupil.losses.values())


def test_experts_hit_is_the_expectation_of_even_routing() -> None:
    """Against a simulation: every token takes 3 of 7 experts at random."""
    generator = torch.Generator().manual_seed(0)
    taken = torch.rand(4000, 5, 7, generator=generator).topk(3).indices.flatten(1)
    distinct = sum(len(set(trial)) for trial in taken.tolist()) / 4000
    assert Matrix(4, 4, experts=7, used=3).hit(5) == pytest.approx(distinct, rel=0.01)
    assert Matrix(4, 4).hit(5) == 1


def test_a_mixture_costs_its_experts_in_memory_and_those_it_uses_in_time() -> None:
    """Mixtral's layer on an H100: at batch 1 two experts are read, at a large batch all eight."""
    config = {
        "model_type": "mixtral",
        "num_hidden_layers": 1,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 32000,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }
    shape = Shape.from_config(config)

    def decode_s(experts: int, batch: int) -> float:
        workload = Workload(prompt_tokens=1, new_tokens=1, batches=(batch,))
        where = device("h100-sxm")
        cost = ffn_cost(shape, MoE(experts), workload=workload, batch=batch, device=where)
        assert cost.params == shape.ffn_params(MoE(experts))
        return cost.decode_s

    assert decode_s(8, 1) / decode_s(2, 1) == pytest.approx(1, rel=0.01)
    assert decode_s(8, 64) / decode_s(8, 1) == pytest.approx(4, rel=0.2)
    assert decode_s(8, 64) / decode_s(4, 64) == pytest.approx(2, rel=0.1)
    dense = Shape.from_config(config | {"model_type": "llama"})
    assert shape.ffn_params(MoE(8)) == pytest.approx(
        8 * dense.ffn_params(dense.blocks[0].ffn), rel=1e-3
    )


def test_fused_tensors_on_disk_read_the_same(parent: Parent, tmp_path: Path) -> None:
    """Whether the file holds a tensor an expert, or one of all as in memory."""
    shutil.copytree(parent.folder, tmp_path / "fused")
    tensors = load_file(parent.folder / "model.safetensors")
    others = {name: t for name, t in tensors.items() if "layers.0.mlp" not in name}
    own = {f"model.layers.0.{n}": t.contiguous() for n, t in parent.layer_weights(0).items()}
    kept = {name: t for name, t in others.items() if "layers.0." not in name}
    save_file(kept | own, tmp_path / "fused" / "model.safetensors", {"format": "pt"})
    again = Parent(tmp_path / "fused", "fused").layer_weights(0)
    assert again.keys() == parent.layer_weights(0).keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in parent.layer_weights(0).items())


def test_an_expert_that_is_missing_is_named(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(checkpoints["mixtral"], tmp_path / "broken")
    file = tmp_path / "broken" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.block_sparse_moe.experts.3.w3.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(PuzzleError, match=r"no tensor .*layers\.1\..*experts\.3\.w3\.weight"):
        open_parent(str(tmp_path / "broken")).layer(1)


def test_quantized_weights_are_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(checkpoints["gpt_oss"], tmp_path / "quantized")
    path = tmp_path / "quantized" / "config.json"
    config = json.loads(path.read_text()) | {"quantization_config": {"quant_method": "mxfp4"}}
    path.write_text(json.dumps(config))
    with pytest.raises(PuzzleError, match="holds mxfp4 quantized weights; give the same model"):
        open_parent(str(path.parent))


def test_shares_of_a_mixture_are_of_its_experts(checkpoints: dict[str, Path]) -> None:
    parent = Parent(checkpoints["qwen3_moe"], "qwen3_moe")
    space = Space(attention=("100%",), ffn=("50%", "1%", "moe5", "ffn32", "noop"))
    options = [
        [str(block.ffn) for block in blocks] for blocks in layer_blocks(parent.blocks, space, "hf")
    ]
    assert options[0] == options[2] == ["moe6", "moe3", "moe1", "moe5", "noop"]
    assert options[1] == ["ffn96", "ffn48", "ffn1", "ffn32", "noop"]


@pytest.mark.parametrize(
    ("family", "entry", "sentence"),
    [
        ("mixtral", "moe5", "asks for 5 experts, the parent has 4"),
        ("mixtral", "ffn32", "asks for ffn32, but no layer .* its own are moe4"),
        ("llama", "moe2", "asks for moe2, but no layer .* its own are ffn96"),
    ],
)
def test_what_a_parent_has_no_experts_for_is_refused(
    family: str, entry: str, sentence: str, checkpoints: dict[str, Path]
) -> None:
    blocks = Parent(checkpoints[family], family).blocks
    with pytest.raises(PuzzleError, match=sentence):
        layer_blocks(blocks, Space(ffn=(entry,)), "hf")


def test_a_whole_search_of_a_mixture(tmp_path: Path) -> None:
    config = transformers.Qwen3MoeConfig(
        vocab_size=4096,
        hidden_size=64,
        intermediate_size=256,
        moe_intermediate_size=128,
        num_experts=8,
        num_experts_per_tok=2,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        mlp_only_layers=[1],
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    transformers.Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "parent")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        embedded = resources.files("puzzle.data") / "parent" / name
        (tmp_path / "parent" / name).write_bytes(embedded.read_bytes())
    settings = ["target=hf", "space.ffn=[100%, 50%, 25%, linear, noop]", *SETTINGS]
    found = search(str(tmp_path / "parent"), out=tmp_path / "run", settings=settings)
    assert "moe8" in str(open_parent(str(tmp_path / "parent")).blocks[0])
    assert found.report.exists()
    child = transformers.AutoModelForCausalLM.from_pretrained(
        found.checkpoint, trust_remote_code=True
    )
    assert child.num_parameters() == found.value("parameters", "child")
