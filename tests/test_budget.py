"""Budgets load strictly, resolve against the parent, and the default one makes a real choice."""

from dataclasses import replace

import pytest

from puzzle.blocks.variant import FFN, GQA, Block, NoOp
from puzzle.budget import SHIPPED, Budget, Limits, budget_names, load_budget
from puzzle.errors import PuzzleError
from puzzle.hardware.roofline import attention_cost, ffn_cost, model_cost
from puzzle.hardware.throughput import Prediction, best, predict, reference_of
from puzzle.shape import Shape

EMBEDDED = Shape.from_config(
    {
        "model_type": "llama",
        "num_hidden_layers": 8,
        "hidden_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "intermediate_size": 1024,
        "vocab_size": 4096,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
)
LLAMA_70B = Shape.from_config(
    {
        "model_type": "llama",
        "num_hidden_layers": 80,
        "hidden_size": 8192,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "intermediate_size": 28672,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
    }
)
PARENT = Prediction(
    batch=8,
    tokens_per_s=1000.0,
    ttft_s=0.5,
    tpot_s=0.01,
    memory_bytes=2**34,
    weight_bytes=2**33,
    kv_bytes=2**33,
    params=10**9,
    prefill_s=0.5,
    decode_s=1.0,
)
TEXT = """\
hardware: a100-sxm
workload: {prompt_tokens: 10, new_tokens: 6, batches: [1, 2]}
"""


def load(tmp_path, text) -> Budget:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return load_budget(path)


@pytest.mark.parametrize("name", budget_names())
def test_shipped_budgets_load_and_survive_a_round_trip(name):
    budget = load_budget(name)
    assert budget.name == name
    assert budget.description
    assert budget.workload.total_tokens <= EMBEDDED.max_positions
    assert budget.resolve(PARENT).memory_bytes <= budget.device.memory_gib * 2**30
    assert Budget.model_validate(budget.model_dump(mode="json")) == budget
    assert (SHIPPED / f"{name}.yaml").read_text().startswith("# ")


def test_limits_absolute_and_relative(tmp_path):
    budget = load(
        tmp_path,
        TEXT + "limits: {memory: 72 GiB, params: 0.5x, ttft: 200 ms, tpot: 40 %}\n"
        "targets: {throughput: 2x}\n",
    )
    assert budget.name == "mine"
    assert budget.resolve(PARENT) == Limits(72 * 2**30, 5 * 10**8, 0.2, 0.004, 2000.0)


def test_memory_is_never_more_than_the_device_has(tmp_path):
    """A large parent's share may be more; so many bytes that are not there are a mistake."""
    large = replace(PARENT, memory_bytes=10**12)
    assert load(tmp_path, TEXT + "limits: {memory: 0.9x}\n").resolve(large) == Limits(72 * 2**30)
    with pytest.raises(
        PuzzleError, match=r"budget mine: memory 200 GiB is more than the 80\.0 GiB"
    ):
        load(tmp_path, TEXT + "limits: {memory: 200 GiB}\n").resolve(PARENT)


def test_only_memory_is_limited_when_nothing_is_said(tmp_path):
    assert load(tmp_path, TEXT).resolve(PARENT) == Limits(72 * 2**30)


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (
            "limits:\n  memory: 20 ms",
            "line 4: limits.memory is '20 ms', expected an amount like 72 GiB, or a multiple of "
            "the parent's like 0.5x",
        ),
        (
            "targets: {throughput: 5500}",
            "line 3: targets.throughput is 5500, expected an amount like 5500 tok/s, or a "
            "multiple of the parent's like 0.5x",
        ),
        (
            "limits:\n  params: 0x",
            "line 4: limits.params is '0x', expected an amount like 6.5 B params, or a multiple "
            "of the parent's like 0.5x, above 0",
        ),
        ("target: {}", "line 3: unknown key 'target'; did you mean 'targets'?"),
        ("gpus: 3", "line 3: gpus is 3, expected 1, 2, 4 or 8"),
    ],
)
def test_mistakes_are_sentences_with_the_line(tmp_path, extra, expected):
    with pytest.raises(PuzzleError) as error:
        load(tmp_path, TEXT + extra)
    assert str(error.value) == f"{tmp_path}/mine.yaml {expected}"


def test_a_missing_key_is_named(tmp_path):
    with pytest.raises(PuzzleError, match=r"mine.yaml line 1: key 'workload' is missing$"):
        load(tmp_path, "hardware: b200\n")


def test_an_unknown_budget_suggests_the_nearest():
    with pytest.raises(PuzzleError) as error:
        load_budget("h200-gpu1")
    assert str(error.value) == "budget 'h200-gpu1' is unknown; did you mean 'h200-1gpu'?"
    with pytest.raises(PuzzleError, match="known are a100-1gpu, cpu-laptop, h100-1gpu"):
        load_budget("tpu")


def test_a_workload_longer_than_the_parents_positions_gives_the_numbers():
    with pytest.raises(PuzzleError) as error:
        reference_of(replace(EMBEDDED, max_positions=128), load_budget("h100-1gpu"))
    assert str(error.value).startswith(
        "the workload needs 256 positions (200 prompt + 56 new tokens), the parent has 128"
    )


@pytest.mark.parametrize("name", ["h100-1gpu", "cpu-laptop"])
def test_both_halves_of_the_embedded_parent_hold_a_quarter_of_its_time(name):
    budget = load_budget(name)
    parent = reference_of(EMBEDDED, budget)
    setting = {
        "workload": budget.workload,
        "batch": parent.batch,
        "device": budget.device,
    }
    total_s = parent.prefill_s + parent.decode_s
    for half in (
        attention_cost(EMBEDDED, GQA(4), **setting),
        ffn_cost(EMBEDDED, FFN(1024), **setting),
    ):
        assert 8 * half.total_s / total_s >= 0.25


def test_throughput_is_what_binds_the_embedded_parent_by_default():
    budget = load_budget("h100-1gpu")
    parent = reference_of(EMBEDDED, budget)
    limits = budget.resolve(parent)
    assert parent.memory_bytes < limits.memory_bytes / 10
    assert limits.tokens_per_s == pytest.approx(1.8 * parent.tokens_per_s)


@pytest.mark.parametrize(
    ("block", "reaches"),
    [
        ("gqa1+ffn256", True),  # both halves cut: enough
        ("gqa1+ffn1024", False),  # attention alone: not enough, however few KV heads
        ("gqa4+noop", False),  # FFN alone: not enough, even without any
    ],
)
def test_the_default_target_needs_both_halves_to_change(block, reaches):
    budget = load_budget("h100-1gpu")
    limits = budget.resolve(reference_of(EMBEDDED, budget))
    child = serve(EMBEDDED, [Block.parse(block)] * 8, budget, limits.memory_bytes)
    assert (child.tokens_per_s >= limits.tokens_per_s) is reaches


def test_a_70b_parent_needs_two_gpus_and_has_a_child_for_one():
    budget = load_budget("h100-1gpu")
    parent = reference_of(LLAMA_70B, budget)
    limits = budget.resolve(parent)
    assert parent.gpus == 2
    assert parent.weight_bytes > limits.memory_bytes
    blocks = [Block(GQA(8), FFN(14336)), Block(NoOp(), FFN(7168))] * 40
    child = serve(LLAMA_70B, blocks, budget, limits.memory_bytes)
    assert child is not None
    assert child.memory_bytes <= limits.memory_bytes


def serve(shape, blocks, budget, memory_bytes) -> Prediction | None:
    costs = {
        batch: model_cost(
            shape, blocks, workload=budget.workload, batch=batch, device=budget.device
        )
        for batch in budget.workload.batches
    }
    found = best(costs, budget.workload, memory_bytes)
    assert found is None or found == predict(costs[found.batch], budget.workload, found.batch)
    return found
