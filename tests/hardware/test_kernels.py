"""Kernels by formula: bytes and operations by hand, the bend, the cache's conversion, the link."""

import math

import pytest

from puzzle.errors import PuzzleError
from puzzle.hardware.devices import device
from puzzle.hardware.kernels import FLOAT8_CACHE_TFLOPS, Heads, Roofline

H100 = Roofline(device("h100-sxm"))
LAUNCH_S = 3.5e-6
BYTES_PER_S = 3.35e12 * 0.82


@pytest.mark.parametrize(
    ("weights", "weight_bytes", "input_bytes", "flops_per_s"),
    [
        ("bfloat16", 2, 2, 989.4e12 * 0.78),
        ("float8", 1, 1, 1978.9e12 * 0.68),
        ("int4", 0.53125, 2, 989.4e12 * 0.78),  # multiplied in bfloat16
    ],
)
def test_a_gemm_by_hand(weights, weight_bytes, input_bytes, flops_per_s):
    rows, size_in, size_out = 200, 8192, 28672
    memory_s = (size_in * size_out * weight_bytes) + rows * (size_in * input_bytes + 2 * size_out)
    memory_s /= BYTES_PER_S
    compute_s = 2 * rows * size_in * size_out / flops_per_s
    bent_s = (compute_s**3.2 + memory_s**3.2) ** (1 / 3.2)
    found = H100.gemm(rows, size_in, size_out, weights)
    assert found.seconds == pytest.approx(bent_s + LAUNCH_S)
    assert max(compute_s, memory_s) < found.seconds < compute_s + memory_s + LAUNCH_S
    assert found.sources == {"roofline"}


def test_decode_over_a_bfloat16_cache_reads_it_and_over_float8_also_converts():
    plain, small = (Heads(8, 1, 128, kind) for kind in ("bfloat16", "float8"))
    sequences, context = 64, 4000
    numbers = 2 * sequences * context * 128
    ends = 2 * sequences * 8 * 128 * 2
    read_s = (2 * numbers + ends) / (3.35e12 * 0.9)
    assert H100.decode_attention(plain, sequences, context).seconds == pytest.approx(
        read_s + LAUNCH_S
    )
    read_s = (numbers + ends) / (3.35e12 * 0.9)
    convert_s = 2 * 8 * numbers / (FLOAT8_CACHE_TFLOPS * 1e12)
    assert H100.decode_attention(small, sequences, context).seconds == pytest.approx(
        math.hypot(read_s, convert_s) + LAUNCH_S
    )


def test_long_prompts_reach_more_of_the_arithmetic():
    heads = Heads(32, 8, 128, "bfloat16")

    def tflops(tokens):
        pairs = tokens * (tokens + 1) // 2
        seconds = H100.prefill_attention(heads, 4, tokens, pairs).seconds - LAUNCH_S
        return 4 * 32 * 128 * 4 * pairs / seconds / 1e12

    assert tflops(1300) == pytest.approx(560 / 2)
    assert tflops(128) < 60 < 500 < tflops(16384) < 560


def test_all_reduce_by_hand_and_nothing_alone():
    assert H100.all_reduce(1e6, 1).seconds == 0
    crossing = 2 * 7 / 8 * 1e6 * 2
    expected = 22e-6 * 4 + crossing / 445e9
    assert H100.all_reduce(1e6, 8).seconds == pytest.approx(expected)


def test_gpus_without_a_known_link_say_so():
    with pytest.raises(PuzzleError, match=r"no link between 2 of these GPUs is known, only .* 1;"):
        Roofline(device("rtx4090")).all_reduce(1.0, 2)
    with pytest.raises(
        PuzzleError, match="between 16 of these GPUs is known, only between 2, 4, 8"
    ):
        H100.all_reduce(1.0, 16)


@pytest.mark.parametrize("name", ["rtx4090", "cpu-laptop"])
def test_a_device_without_fitted_kernels_falls_back_on_its_efficiency(name):
    found = device(name)
    kernels = Roofline(found)
    compute_s = kernels.gemm(16384, 16384, 16384, "bfloat16").seconds
    assert compute_s == pytest.approx(2 * 16384**3 / found.gemm_flops_per_s("bfloat16"), rel=0.01)
    heads = Heads(8, 8, 64, "bfloat16")
    assert kernels.prefill_attention(heads, 1, 4096, 4096 * 4097 // 2).seconds > 0
    assert kernels.elementwise(1e9).seconds == pytest.approx(2e9 / found.bytes_per_s, rel=0.01)
