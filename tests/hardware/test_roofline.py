"""Roofline costs against closed forms: bytes by hand, limits, additivity, monotonicity."""

from dataclasses import replace
from itertools import pairwise

import pytest

from puzzle.blocks.variant import FFN, GQA, Block, LinearMap, NoOp
from puzzle.budget import Workload
from puzzle.hardware.cost import NOTHING
from puzzle.hardware.devices import device
from puzzle.hardware.roofline import (
    attention_cost,
    block_cost,
    ffn_cost,
    kv_bytes_per_sequence,
    model_cost,
    outside_cost,
)
from puzzle.shape import Shape


def llama(layers, hidden, heads, kv_heads, width, vocab) -> Shape:
    return Shape.from_config(
        {
            "model_type": "llama",
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "intermediate_size": width,
            "vocab_size": vocab,
        }
    )


SMOLLM2 = llama(30, 576, 9, 3, 1536, 49152)
LLAMA_8B = llama(32, 4096, 32, 8, 14336, 128256)
LLAMA_70B = llama(80, 8192, 64, 8, 28672, 128256)
H100 = device("h100-sxm")
INSTANT = H100.model_copy(
    update={"bandwidth_tb_s": 1e12, "peak_tflops": dict.fromkeys(H100.peak_tflops, 1e15)}
)
NO_LAUNCH = H100.model_copy(update={"launch_us": 1e-12})
WORK = Workload(prompt_tokens=200, new_tokens=56, batches=(1,))


def setting(batch=4, device=H100, workload=WORK, **changes):
    return {
        "workload": workload.model_copy(update=changes),
        "batch": batch,
        "device": device,
    }


@pytest.mark.parametrize(
    ("shape", "bytes_per_token"),
    [
        (SMOLLM2, 30 * 2 * 3 * 64 * 2),  # 23040
        (LLAMA_8B, 131072),
        (LLAMA_70B, 327680),
    ],
)
def test_cache_bytes_by_hand(shape, bytes_per_token):
    cost = model_cost(shape, shape.blocks, **setting(batch=3))
    assert cost.kv_bytes == 3 * 256 * bytes_per_token
    halved = model_cost(shape, shape.blocks, **setting(batch=3, kv="float8"))
    assert halved.kv_bytes * 2 == cost.kv_bytes


def test_weight_bytes_by_hand():
    blocks = SMOLLM2.blocks
    cost = model_cost(SMOLLM2, blocks, **setting())
    assert cost.params == SMOLLM2.model_params(blocks)
    assert cost.weight_bytes == 2 * cost.params
    attention = attention_cost(LLAMA_70B, GQA(8), **setting(weights="float8"))
    assert attention.weight_bytes / 2**20 == pytest.approx(144.0, abs=0.01)  # measured: 144.0 MiB


def test_float8_leaves_embedding_and_head_in_bfloat16():
    plain, small = (outside_cost(LLAMA_8B, **setting(weights=w)) for w in ("bfloat16", "float8"))
    assert plain == small


def test_a_window_bounds_the_cache():
    for window, kept in ((64, 64), (256, 256), (300, 256), (None, 256)):
        variant = GQA(8, window)
        assert kv_bytes_per_sequence(LLAMA_8B, variant, WORK) == kept * 2 * 8 * 128 * 2


def test_noop_costs_nothing_and_halves_add_up():
    assert block_cost(LLAMA_8B, Block(NoOp(), NoOp()), **setting()) == NOTHING
    attention = attention_cost(LLAMA_8B, GQA(4), **setting())
    ffn = ffn_cost(LLAMA_8B, FFN(7168), **setting())
    assert block_cost(LLAMA_8B, Block(GQA(4), FFN(7168)), **setting()) == attention + ffn
    assert attention + NOTHING == attention


@pytest.mark.parametrize(
    ("half", "variant", "kernels"),
    [
        (attention_cost, GQA(8), 5),  # norm, QKV, rotation, attention, output
        (attention_cost, LinearMap(), 2),  # norm, GEMM
        (ffn_cost, FFN(14336), 4),  # norm, gate and up, activation, down
        (ffn_cost, LinearMap(), 2),
    ],
)
def test_on_an_instant_device_only_launches_remain(half, variant, kernels):
    cost = half(LLAMA_8B, variant, **setting(device=INSTANT))
    assert cost.prefill_s == pytest.approx(kernels * 2.5e-6, rel=1e-6)
    assert cost.decode_s == pytest.approx(56 * kernels * 2.5e-6, rel=1e-6)


def test_query_and_key_norms_are_one_more_kernel():
    normed = replace(LLAMA_8B, qk_norm=True)
    plain_s, normed_s = (
        attention_cost(shape, GQA(8), **setting(device=INSTANT)).prefill_s
        for shape in (LLAMA_8B, normed)
    )
    assert normed_s - plain_s == pytest.approx(2.5e-6, rel=1e-6)


def test_large_prefill_runs_at_the_arithmetic_peak():
    cost = ffn_cost(LLAMA_70B, FFN(28672), **setting(batch=64, device=NO_LAUNCH))
    flops = 2 * 3 * 8192 * 28672 * 64 * 200
    gemms_s = flops / H100.gemm_flops_per_s("bfloat16")
    assert gemms_s < cost.prefill_s < 1.1 * gemms_s


def test_single_decode_runs_at_the_bandwidth():
    cost = ffn_cost(LLAMA_70B, FFN(28672), **setting(batch=1, device=NO_LAUNCH))
    assert cost.decode_s / 56 == pytest.approx(cost.weight_bytes / H100.bytes_per_s, rel=1e-3)


def test_long_decode_reads_the_cache_at_the_bandwidth():
    long = setting(batch=256, device=NO_LAUNCH, prompt_tokens=30000, new_tokens=2)
    cost = attention_cost(LLAMA_8B, GQA(8), **long)
    read_s = 256 * 30001.5 * 2 * 8 * 128 * 2 / H100.bytes_per_s
    assert cost.decode_s / 2 == pytest.approx(read_s, rel=0.01)


@pytest.mark.parametrize("window", [None, 1, 100, 210, 256, 1000])
def test_decode_is_the_sum_of_its_steps(window):
    variant = GQA(8, window)
    whole = attention_cost(LLAMA_8B, variant, **setting())
    steps = [
        attention_cost(LLAMA_8B, variant, **setting(prompt_tokens=200 + step, new_tokens=1))
        for step in range(56)
    ]
    assert whole.decode_s == pytest.approx(sum(cost.decode_s for cost in steps))


@pytest.mark.parametrize("window", [1, 7, 4096, 10000])
def test_a_window_saves_the_pairs_it_hides(window):
    compute_bound = setting(
        batch=2, prompt_tokens=4096, device=NO_LAUNCH.model_copy(update={"bandwidth_tb_s": 1e12})
    )
    full, windowed = (
        attention_cost(LLAMA_8B, GQA(8, w), **compute_bound).prefill_s for w in (None, window)
    )
    hidden = sum(max(0, token - window) for token in range(1, 4097))
    saved_s = 2 * hidden * 4 * 32 * 128 / H100.attention_flops_per_s("bfloat16")
    assert full - windowed == pytest.approx(saved_s, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("batch", [1, 64, 1024])
def test_less_of_anything_is_never_slower(batch):
    widths = [ffn_cost(SMOLLM2, FFN(width), **setting(batch)) for width in range(64, 1537, 64)]
    heads = [attention_cost(SMOLLM2, GQA(kv_heads), **setting(batch)) for kv_heads in (1, 3, 9)]
    for costs in (widths, heads):
        for smaller, larger in pairwise(costs):
            assert smaller.prefill_s <= larger.prefill_s
            assert smaller.decode_s <= larger.decode_s
            assert smaller.weight_bytes < larger.weight_bytes
    assert ffn_cost(SMOLLM2, LinearMap(), **setting(batch)).total_s < widths[-1].total_s


def test_more_at_once_takes_longer_but_less_per_request():
    blocks = SMOLLM2.blocks
    costs = [model_cost(SMOLLM2, blocks, **setting(batch=2**power)) for power in range(11)]
    for power, (smaller, larger) in enumerate(pairwise(costs)):
        assert smaller.total_s < larger.total_s < 2 * smaller.total_s
        assert larger.kv_bytes == 2 * smaller.kv_bytes == 2 ** (power + 1) * costs[0].kv_bytes
        assert smaller.weight_bytes == larger.weight_bytes


def test_ungated_ffn_has_two_thirds_of_the_gemm_time():
    gated, ungated = (
        ffn_cost(shape, FFN(28672), **setting(batch=64, device=NO_LAUNCH)).prefill_s
        for shape in (LLAMA_70B, replace(LLAMA_70B, gated=False))
    )
    assert ungated / gated == pytest.approx(2 / 3, rel=0.01)


def gemm_s(rows, size_in, size_out):
    flops = 2 * rows * size_in * size_out
    moved = 2 * (size_in * size_out + rows * (size_in + size_out))
    seconds = max(flops / H100.gemm_flops_per_s("bfloat16"), moved / H100.bytes_per_s)
    return seconds + H100.launch_s


def elementwise_s(numbers):
    return 2 * numbers / H100.bytes_per_s + H100.launch_s


def test_a_linear_half_by_hand():
    cost = attention_cost(LLAMA_8B, LinearMap(), **setting(batch=4))
    for seconds, rows, times in ((cost.prefill_s, 800, 1), (cost.decode_s, 4, 56)):
        by_hand = elementwise_s(4 * rows * 4096) + gemm_s(rows, 4096, 4096)
        assert seconds == pytest.approx(times * by_hand)


def test_outside_the_layers_by_hand_with_the_head_on_last_positions_only():
    cost = outside_cost(LLAMA_8B, **setting(batch=4))
    for seconds, rows, times in ((cost.prefill_s, 800, 1), (cost.decode_s, 4, 56)):
        lookup_and_norm = elementwise_s(2 * rows * 4096) + elementwise_s(4 * rows * 4096)
        assert seconds == pytest.approx(times * (lookup_and_norm + gemm_s(4, 4096, 128256)))


def test_both_halves_of_a_parent_layer_by_hand():
    attention = attention_cost(LLAMA_8B, GQA(8), **setting(batch=4))
    ffn = ffn_cost(LLAMA_8B, FFN(14336), **setting(batch=4))
    prompt_pairs, mean_context = 4 * 200 * 201 / 2, 200 + 57 / 2
    passes = (
        (attention.prefill_s, ffn.prefill_s, 800, prompt_pairs, 800, 1),
        (attention.decode_s, ffn.decode_s, 4, 4 * mean_context, 4 * mean_context, 56),
    )
    for attention_s, ffn_s, rows, pairs, cached, times in passes:
        norm_s = elementwise_s(4 * rows * 4096)
        flops, moved = 4 * 4096 * pairs, 2 * (2 * 4096 * rows + 2 * 1024 * cached)
        core_s = max(flops / H100.attention_flops_per_s("bfloat16"), moved / H100.bytes_per_s)
        assert attention_s == pytest.approx(
            times
            * (
                norm_s
                + gemm_s(rows, 4096, 6144)
                + elementwise_s(2 * rows * 6144)
                + core_s
                + H100.launch_s
                + gemm_s(rows, 4096, 4096)
            )
        )
        assert ffn_s == pytest.approx(
            times
            * (
                norm_s
                + gemm_s(rows, 4096, 28672)
                + elementwise_s(3 * rows * 14336)
                + gemm_s(rows, 14336, 4096)
            )
        )
