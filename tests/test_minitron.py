"""Minitron's parts: importance by direct computation, cuts that must change nothing, the grid."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import MIXTURES, tiny_model

from puzzle.baselines.minitron.cut import Cut, check_dense
from puzzle.baselines.minitron.depth import least_missed, remaining, turned_by
from puzzle.baselines.minitron.grid import NEAR, Grid, kind_of, near
from puzzle.baselines.minitron.importance import OVER_TOKENS, Importance, activity
from puzzle.baselines.minitron.pruned import model_of, write_pruned
from puzzle.baselines.minitron.sizes import size_in, target_of
from puzzle.baselines.minitron.width import prune_tensors
from puzzle.blocks.variant import FFN
from puzzle.budget import load_budget
from puzzle.config import load_config
from puzzle.errors import PuzzleError
from puzzle.hardware.roofline import model_cost
from puzzle.hardware.throughput import reference, reference_of
from puzzle.parent import Parent, open_parent

DENSE = ["llama", "llama-tied", "mistral", "qwen2", "qwen3", "nemotron"]
OVER_TEXTS = {
    "mean": lambda x_SC: x_SC.mean(dim=0),
    "l2": lambda x_SC: x_SC.square().sum(dim=0).sqrt(),
    "var": lambda x_SC: x_SC.var(dim=0, correction=0),
}
WAYS = list(itertools.product(OVER_TOKENS, OVER_TEXTS))


@pytest.fixture(params=DENSE)
def dense(request: pytest.FixtureRequest) -> str:
    """Every dense family in turn."""
    return request.param


def activations(model: Any, tokens: torch.Tensor) -> dict[str, list[torch.Tensor]]:
    """What enters `o_proj` and `down_proj` and leaves each norm, in one pass of the whole model."""
    seen: dict[str, list[torch.Tensor]] = {"heads": [], "neurons": [], "channels": []}
    for layer in model.model.layers:
        entering = {"heads": layer.self_attn.o_proj, "neurons": layer.mlp.down_proj}
        for name, module in entering.items():
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: seen[name].append(inputs[0])
            )
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.register_forward_hook(lambda _, inputs, out: seen["channels"].append(out))
    model.model.norm.register_forward_hook(lambda _, inputs, out: seen["channels"].append(out))
    with torch.no_grad():
        model(tokens)
    seen["heads"] = [x.unflatten(-1, (4, -1)).norm(dim=-1) for x in seen["heads"]]
    return seen


@pytest.mark.parametrize(("over_tokens", "over_texts"), WAYS)
def test_importance_is_that_of_one_pass_of_the_whole_model(
    over_tokens: Any, over_texts: Any, checkpoints: dict[str, Path], tokens: torch.Tensor
) -> None:
    seen = activations(tiny_model("qwen3"), tokens)
    by_tokens = {
        "mean": lambda x: x.abs().sum(1) / x.shape[1],
        "l2": lambda x: torch.linalg.vector_norm(x, dim=1),
        "var": lambda x: x.square().mean(1) - x.mean(1).square(),
    }[over_tokens]
    wanted = {
        name: torch.stack([OVER_TEXTS[over_texts](by_tokens(x.double())) for x in each])
        for name, each in seen.items()
    }
    sums = activity(Parent(checkpoints["qwen3"], "qwen3"), tokens)
    found = Importance.of(sums, over_tokens, over_texts)
    close = {"rtol": 1e-3, "atol": 1e-5}
    torch.testing.assert_close(found.heads_LH, wanted["heads"].float(), **close)
    torch.testing.assert_close(found.neurons_LF, wanted["neurons"].float(), **close)
    torch.testing.assert_close(found.channels_D, wanted["channels"].sum(0).float(), **close)


def test_turns_and_energy_are_those_of_the_streams(
    checkpoints: dict[str, Path], tokens: torch.Tensor
) -> None:
    parent = Parent(checkpoints["llama"], "llama")
    with torch.no_grad():
        streams = tiny_model("llama")(tokens, output_hidden_states=True).hidden_states
    found = Importance.of(activity(parent, tokens), "mean", "l2")
    for i, j in ((0, 1), (1, 2), (0, 2), (2, 0)):
        cosine = torch.cosine_similarity(streams[i], streams[j], dim=-1).mean()
        assert float(found.turns[i, j]) == pytest.approx(float(1 - cosine), abs=1e-5)
    share = streams[1].square() / streams[1].square().sum(-1, keepdim=True)
    torch.testing.assert_close(found.energy_ND[2], share.mean((0, 1)))  # before layer 1
    torch.testing.assert_close(found.energy_ND.sum(1), torch.ones(7))


def even(parent: Parent) -> Importance:
    """Everything equally important."""
    shape = parent.shape
    return Importance(
        torch.ones(shape.layers, shape.heads),
        torch.ones(shape.layers, shape.intermediate_size),
        torch.ones(shape.hidden_size),
        torch.ones(2 * shape.layers + 1, shape.hidden_size) / shape.hidden_size,
        torch.zeros(shape.layers + 1, shape.layers + 1),
    )


def silenced(family: str, folder: Path) -> tuple[Parent, Any, dict[str, list[int]]]:
    """A model some of whose parts do nothing, which those are, and its checkpoint."""
    model, gone = tiny_model(family), {"neurons": [3, 50, 95], "heads": [0, 3], "hidden": []}
    if family != "nemotron":  # its norms subtract the mean over all channels, silent ones too
        gone["hidden"] = [*range(5, 21)]
    with torch.no_grad():
        for layer in model.model.layers:
            head_dim = layer.self_attn.head_dim
            for head in gone["heads"]:
                span = slice(head * head_dim, (head + 1) * head_dim)
                layer.self_attn.o_proj.weight[:, span] = 0
            layer.mlp.down_proj.weight[:, gone["neurons"]] = 0
            for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
                last.weight[gone["hidden"]] = 0
                if last.bias is not None:
                    last.bias[gone["hidden"]] = 0
        model.model.embed_tokens.weight[:, gone["hidden"]] = 0
    model.save_pretrained(folder)
    return Parent(folder, family), model, gone


def test_removing_what_does_nothing_changes_no_logit(
    dense: str, tokens: torch.Tensor, tmp_path: Path
) -> None:
    """One query head of each group, three neurons, sixteen hidden channels."""
    parent, whole, gone = silenced(dense, tmp_path / "whole")
    importance = even(parent)
    importance.neurons_LF[:, gone["neurons"]] = 0
    importance.heads_LH[:, gone["heads"]] = 0
    importance.channels_D[gone["hidden"]] = 0
    measured = Importance.of(activity(parent, tokens), "mean", "l2")
    importance = replace(importance, energy_ND=measured.energy_ND)
    assert (measured.channels_D == 0).nonzero().flatten().tolist() == gone["hidden"]
    cut = replace(
        Cut.whole(parent.shape),
        heads=2,
        intermediate_size=93,
        hidden_size=64 - len(gone["hidden"]),
    )
    weights = prune_tensors(parent, cut, importance)
    pruned = model_of(cut.config(parent.config), weights)
    folder = write_pruned(tmp_path / "pruned", parent, cut, weights)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.config.model_type == parent.family
    with torch.no_grad():
        wanted = whole(tokens).logits
        torch.testing.assert_close(pruned(tokens).logits, wanted, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(loaded(tokens).logits, wanted, rtol=1e-3, atol=1e-3)
    again = Parent(folder, "pruned")
    assert Cut.whole(again.shape) == cut
    assert again.shape.head_dim == parent.shape.head_dim


@pytest.mark.parametrize("family", ["llama", "nemotron", "qwen2"])
def test_silent_groups_and_neurons_are_found_and_go(
    family: str, tokens: torch.Tensor, tmp_path: Path
) -> None:
    """Measured importance: one of two KV groups, whose values are zero, and 40 dead neurons."""
    model, dead = tiny_model(family), [*range(10, 50)]
    with torch.no_grad():
        for layer in model.model.layers:
            value, up = layer.self_attn.v_proj, layer.mlp.up_proj
            value.weight[: layer.self_attn.head_dim] = 0
            up.weight[dead] = 0
            for bias, rows in ((value.bias, slice(layer.self_attn.head_dim)), (up.bias, dead)):
                if bias is not None:
                    bias[rows] = 0
    model.save_pretrained(tmp_path)
    parent = Parent(tmp_path, family)
    importance = Importance.of(activity(parent, tokens), "mean", "l2")
    assert (importance.heads_LH[:, :2] == 0).all()
    assert (importance.neurons_LF[:, dead] == 0).all()
    cut = replace(Cut.whole(parent.shape), heads=2, kv_heads=1, intermediate_size=56)
    pruned = model_of(cut.config(parent.config), prune_tensors(parent, cut, importance))
    with torch.no_grad():
        close = {"rtol": 1e-3, "atol": 1e-4}
        torch.testing.assert_close(pruned(tokens).logits, model(tokens).logits, **close)


def test_the_whole_cut_is_the_parent_bit_for_bit(
    dense: str, checkpoints: dict[str, Path], tokens: torch.Tensor
) -> None:
    parent = Parent(checkpoints[dense], dense)
    whole = Cut.whole(parent.shape)
    pruned = model_of(whole.config(parent.config), prune_tensors(parent, whole, even(parent)))
    with torch.no_grad():
        assert torch.equal(pruned(tokens).logits, tiny_model(dense)(tokens).logits)


def test_layers_go_and_the_others_keep_their_windows(
    dense: str, checkpoints: dict[str, Path], tokens: torch.Tensor
) -> None:
    """Against the model itself with a layer deleted."""
    parent, model = Parent(checkpoints[dense], dense), tiny_model(dense)
    cut = replace(Cut.whole(parent.shape), layers=(0, 2))
    shape = cut.shape(parent.config)
    assert shape.blocks == (parent.blocks[0], parent.blocks[2])
    pruned = model_of(cut.config(parent.config), prune_tensors(parent, cut, even(parent)))
    del model.model.layers[1]
    model.config.num_hidden_layers = 2
    if kinds := getattr(model.config, "layer_types", None):
        model.config.layer_types = [kinds[0], kinds[2]]
    with torch.no_grad():
        close = {"rtol": 1e-4, "atol": 1e-5}
        wanted = model(tokens, use_cache=False).logits
        torch.testing.assert_close(pruned(tokens).logits, wanted, **close)


@pytest.mark.parametrize("merge", [1.0, -0.5])
def test_heads_that_go_are_merged_as_the_paper_writes_it(
    merge: float, checkpoints: dict[str, Path]
) -> None:
    """With K of L heads kept: head_i += head_i - head_{2K-i+1}, i = 2K-L+1..K, counting from 1."""
    parent = Parent(checkpoints["nemotron"], "nemotron")  # groups of 2 query heads, head_dim 24
    importance = even(parent)
    importance.heads_LH[:] = torch.tensor([1.0, 4.0, 3.0, 2.0])
    cut = replace(Cut.whole(parent.shape), heads=2)
    merged = prune_tensors(parent, cut, importance, merge=merge)
    plain = prune_tensors(parent, cut, importance)
    name = "model.layers.0.self_attn.q_proj.weight"
    query = parent.layer_weights(0)["self_attn.q_proj.weight"].unflatten(0, (4, 24))
    wanted = torch.stack([query[i] + merge * (query[i] - query[j]) for i, j in ((1, 0), (2, 3))])
    torch.testing.assert_close(merged[name].unflatten(0, (2, 24)), wanted)
    assert [n for n in plain if not torch.equal(plain[n], merged[n])] == [
        f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(3)
    ]


def test_alone_heads_are_merged_with_their_keys_and_values(tiny_parent: str) -> None:
    """K = 3 of L = 4: only i = 3 takes up head 4, in order of importance."""
    parent = open_parent(tiny_parent)
    importance = even(parent)
    importance.heads_LH[:] = torch.tensor([2.0, 1.0, 4.0, 3.0])
    cut = replace(Cut.whole(parent.shape), hidden_size=63, heads=3, kv_heads=3)
    merged = prune_tensors(parent, cut, importance, merge=1.0)
    for part in ("q_proj", "k_proj", "v_proj"):
        heads = parent.layer_weights(1)[f"self_attn.{part}.weight"].unflatten(0, (4, 16))
        wanted = torch.stack([2 * heads[0] - heads[1], heads[2], heads[3]]).flatten(0, 1)
        found = merged[f"model.layers.1.self_attn.{part}.weight"]
        torch.testing.assert_close(found, wanted[:, :63])


def test_runs_go_that_turn_the_stream_least_and_the_last_layer_stays() -> None:
    assert remaining(5, 2) == [(0, 3, 4), (0, 1, 4)]
    assert remaining(4, 0) == [(0, 1, 2, 3)]
    for layers, count in itertools.product(range(3, 7), range(1, 3)):
        for kept in remaining(layers, count):
            assert len(kept) == layers - count
            assert kept[0] == 0
            assert kept[-1] == layers - 1
    turns = torch.rand(7, 7, generator=torch.Generator().manual_seed(0))
    kept = least_missed(6, 2, turned_by(turns))
    gone = sorted(set(range(6)) - set(kept))
    assert turns[gone[0], gone[0] + 2] == min(turns[i, i + 2] for i in range(1, 4))


@pytest.mark.parametrize(
    ("axes", "target"),
    [
        *[
            (axes, target)
            for axes in (("width",), ("width", "depth"))
            for target in (0.75, 0.5, 0.3)
        ],
        (("depth",), 0.78),  # 6 of 8 layers; a layer is 11 % of the parent
        (("depth",), 0.56),
    ],
)
def test_every_cut_is_within_a_twentieth_of_the_target(
    axes: tuple[str, ...], target: float
) -> None:
    parent = open_parent("embedded")
    whole, size_of = Cut.whole(parent.shape), size_in(parent, load_config())
    grid = Grid(whole, "llama", axes)
    asked: list[int] = []

    def shallow(gone: int) -> tuple[int, ...]:
        asked.append(gone)
        return tuple(range(8 - gone))

    kinds = near(grid, target * size_of(whole), size_of, shallow)
    for kind, found in kinds.items():
        assert set(kind.split(" and ")) <= set(axes)
        for cut in found:
            assert kind_of(whole, cut) == kind
            assert abs(size_of(cut) / size_of(whole) / target - 1) <= NEAR
            assert cut.hidden_size % cut.heads == 0
    if axes == ("width", "depth"):
        assert len(kinds) == (3 if target == 0.75 else 2)
        within = [c for c in grid.cuts(8) if abs(size_of(c) / size_of(whole) / target - 1) <= NEAR]
        assert len(within) == sum(map(len, kinds.values()))
    if axes == ("width",):
        assert set(asked) == {0}


def test_qwen2_is_cut_where_its_hidden_size_still_says_the_size_of_a_head() -> None:
    """vLLM reads hidden size / heads; with two KV heads, as Qwen2.5-1.5B has them."""
    whole = Cut(1536, 12, 2, 8960, tuple(range(28)))
    cuts = list(Grid(whole, "qwen2", ("width", "depth")).cuts(8))
    assert {cut.hidden_size / cut.heads for cut in cuts} == {128}
    assert len({cut.heads for cut in cuts}) > 3


def test_a_cut_is_as_large_as_its_tensors(dense: str, checkpoints: dict[str, Path]) -> None:
    parent = Parent(checkpoints[dense], dense)
    cut = replace(Cut.whole(parent.shape), hidden_size=48, heads=2, intermediate_size=40)
    tensors = prune_tensors(parent, replace(cut, layers=(0, 2)), even(parent))
    count = sum(tensor.numel() for tensor in tensors.values())
    assert size_in(parent, load_config())(replace(cut, layers=(0, 2))) == count


def test_throughput_and_memory_are_targets_too() -> None:
    parent = open_parent("embedded")
    whole = Cut.whole(parent.shape)
    for of, target in (("throughput", "1.4x"), ("memory", "0.6x")):
        config = load_config(None, [f"prune.of={of}", f"prune.target={target}"])
        size_of = size_in(parent, config)
        wanted = target_of(config, size_of(whole))
        assert wanted == pytest.approx(float(target[:-1]) * size_of(whole))
        kinds = near(Grid(whole, "llama", ["width", "depth"]), wanted, size_of, lambda gone: ())
        assert kinds


def test_memory_is_that_of_the_parents_batch(tmp_path: Path) -> None:
    """A smaller model may be fastest at a larger batch, whose cache is no fault of the cut."""
    (path := tmp_path / "wide.yaml").write_text(
        "description: wide\nhardware: h100-sxm\n"
        "workload: {prompt_tokens: 200, new_tokens: 56, batches: [32768, 65536, 131072]}\n"
    )
    parent, budget = open_parent("embedded"), load_budget(str(path))
    config = load_config(None, [f"budget={path}", "prune.of=memory", "prune.target=0.6x"])
    whole, size_of = Cut.whole(parent.shape), size_in(parent, config)
    half = replace(whole, layers=whole.layers[:4])
    shape, batch = half.shape(parent.config), reference_of(parent.shape, budget).batch
    assert reference_of(shape, budget).batch > batch
    cost = model_cost(
        shape, shape.blocks, workload=budget.workload, batch=batch, device=budget.device
    )
    assert size_of(half) == reference({batch: cost}, budget.workload, math.inf).memory_bytes
    assert size_of(half) < size_of(whole)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["prune.target=3 GiB"], "is no amount of parameters"),
        (["prune.target=1.5x"], "is not below the parent's own 4,196,480"),
        (["prune.target=1x"], "is not below the parent's own 4,196,480"),
        (["prune.target=1x", "prune.of=throughput"], "is not above the parent's own"),
        (["prune.target=0.5x", "prune.of=throughput"], "is not above the parent's own"),
    ],
)
def test_a_target_that_cannot_be_says_why(settings: list[str], sentence: str) -> None:
    config = load_config(None, settings)
    parent = open_parent("embedded")
    with pytest.raises(PuzzleError, match=sentence):
        target_of(config, size_in(parent, config)(Cut.whole(parent.shape)))


def test_no_cut_near_says_how_near_the_nearest_comes() -> None:
    parent = open_parent("embedded")
    whole, size_of = Cut.whole(parent.shape), size_in(parent, load_config())
    with pytest.raises(PuzzleError, match=r"no cut by depth comes within 5%.*layers0-1, is \d+%"):
        near(Grid(whole, "llama", ["depth"]), 0.1 * size_of(whole), size_of, lambda gone: ())


@pytest.mark.parametrize("family", sorted(MIXTURES))
def test_experts_are_left_to_the_search(family: str, checkpoints: dict[str, Path]) -> None:
    with pytest.raises(PuzzleError, match=r"Minitron prunes dense models, and layer 0 of .*moe"):
        check_dense(Parent(checkpoints[family], family))


def test_a_child_whose_layers_differ_is_no_parent_to_cut(checkpoints: dict[str, Path]) -> None:
    parent = Parent(checkpoints["llama"], "llama")
    first, *rest = parent.blocks
    narrow = replace(first, ffn=FFN(8))
    check_dense(parent)
    parent.blocks = (first, narrow, *rest[1:])
    with pytest.raises(PuzzleError, match=rf"alike, .* layer 1 {re.escape(str(narrow))};"):
        check_dense(parent)
