"""Continuous batching against its own definitions: what bounds the batch, and what steps cost."""

from dataclasses import replace

import pytest

from puzzle.blocks.variant import FFN, GQA, Block, LinearMap, NoOp
from puzzle.budget import Workload
from puzzle.errors import PuzzleError
from puzzle.hardware.devices import device
from puzzle.hardware.kernels import Roofline
from puzzle.hardware.modeled import Modeled
from puzzle.hardware.published import model
from puzzle.hardware.serving import Engine, Model
from puzzle.hardware.source import Step, block_timed, kv_bytes_per_request

H100, ENGINE = device("h100-sxm"), Engine()
LLAMA_8B, BLOCKS_8B = model("llama-3.1-8b")
LLAMA_70B, BLOCKS_70B = model("llama-3.1-70b")


def served(shape, blocks, prompt, new, gpus=1, engine=ENGINE, **types):
    types = {"weights": "float8", "kv": "float8", **types}
    workload = Workload(prompt_tokens=prompt, new_tokens=new, batches=(1,), **types)
    return Model.of(Modeled(Roofline(H100), shape, workload, gpus), blocks, H100, engine)


def test_the_batch_is_bound_by_memory_by_the_engine_or_by_its_tokens():
    long = served(LLAMA_8B, BLOCKS_8B, 20000, 2000)
    batch, bound = long.largest_batch()
    weights = 8_030_261_248 + 2 * 128256 * 4096 + 4096  # a byte each, what lies outside two
    assert long.weight_bytes == weights
    assert long.request_bytes == 22000 * 32 * 2 * 8 * 128
    room = 0.95 * (79.65 * 2**30 - 2e9 - weights)
    assert long.cache_bytes == pytest.approx(room)
    assert (batch, bound) == (pytest.approx(room / long.request_bytes), "memory")
    assert served(LLAMA_8B, BLOCKS_8B, 1, 10).largest_batch() == (2048.0, "max batch")
    assert served(LLAMA_8B, BLOCKS_8B, 90, 10).largest_batch() == (819.2, "tokens a pass")


def test_throughput_is_what_its_two_kinds_of_steps_say():
    whole = served(LLAMA_8B, BLOCKS_8B, 1000, 200)
    found = whole.at(64.0)
    together = (8192 - 64) / 1000
    reading_s, decoding_s = whole.step(64, together).seconds, whole.step(64, 0).seconds
    steps = 64 / together
    lifetime_s = steps * reading_s + (200 - steps) * decoding_s
    assert found.tokens_per_s == pytest.approx(64 * 200 / lifetime_s)
    assert found.tpot_s == pytest.approx(lifetime_s / 200)
    assert found.ttft_s == pytest.approx(reading_s)
    assert found.kv_bytes == 64 * whole.request_bytes


def test_when_prompts_arrive_in_every_step_all_steps_read():
    whole = served(LLAMA_8B, BLOCKS_8B, 128, 128)
    assert whole.at(4096.0).tpot_s == pytest.approx(whole.step(4096, 32).seconds)


def test_layers_add_up_and_noop_costs_nothing():
    blocks = [Block(GQA(8), FFN(14336)), Block(NoOp(), FFN(256)), Block(LinearMap(), LinearMap())]
    whole = served(LLAMA_8B, [*blocks, Block(NoOp(), NoOp())], 128, 128)
    step = Step(64, 2, 128, 128)
    parts = sum(block_timed(whole.source, block, step).seconds for block in blocks)
    parts += whole.source.outside(step).seconds
    assert whole.step(64, 2).seconds == pytest.approx(parts)
    assert whole.params == LLAMA_8B.model_params(tuple(blocks))


def test_several_gpus_split_weights_and_cache_and_pay_for_talking():
    one, four = (served(LLAMA_70B, BLOCKS_70B, 128, 128, gpus) for gpus in (1, 4))
    assert one.weight_bytes == four.weight_bytes
    assert one.request_bytes == four.request_bytes
    assert four.cache_bytes > 4 * one.cache_bytes
    small = one.at(1.0).tpot_s / four.at(1.0).tpot_s
    assert 1 < small < 4
    talking_s = Roofline(H100).all_reduce(LLAMA_70B.hidden_size, 4).seconds
    assert four.step(1, 0).seconds > 160 * talking_s


def test_gpus_beyond_the_kv_heads_hold_copies():
    workload = Workload(prompt_tokens=100, new_tokens=100, batches=(1,))
    for kv_heads, gpus, copies in ((8, 8, 1), (2, 8, 4), (1, 4, 4), (8, 1, 1), (6, 8, 8 / 6)):
        block = Block(GQA(kv_heads), NoOp())
        alone = kv_bytes_per_request(LLAMA_8B, block, workload, 1)
        assert kv_bytes_per_request(LLAMA_8B, block, workload, gpus) == copies * alone
    assert kv_bytes_per_request(LLAMA_8B, Block(NoOp(), FFN(8)), workload, 4) == 0


def test_a_window_bounds_cache_and_time():
    full, windowed = (
        served(LLAMA_8B, [Block(GQA(8, window), FFN(14336))] * 32, 8000, 100)
        for window in (None, 512)
    )
    assert windowed.request_bytes * 8100 == full.request_bytes * 512
    assert windowed.step(32, 0).seconds < full.step(32, 0).seconds
    assert windowed.step(0, 1).seconds < full.step(0, 1).seconds


@pytest.mark.parametrize("weights", ["int4", "float8", "bfloat16"])
def test_smaller_weights_leave_more_room_and_decode_faster(weights):
    small, large = (served(LLAMA_8B, BLOCKS_8B, 128, 128, weights=w) for w in (weights, "float32"))
    assert small.cache_bytes > large.cache_bytes
    assert small.at(1.0).tpot_s < large.at(1.0).tpot_s


def test_reserve_is_memory_that_requests_do_not_get():
    plain, careful = (
        served(LLAMA_70B, BLOCKS_70B, 128, 2048, engine=Engine(reserve_bytes=reserve))
        for reserve in (2 * 10**9, 3 * 10**9)
    )
    assert plain.cache_bytes - careful.cache_bytes == pytest.approx(0.95e9)
    lost = 1 - careful.saturated().tokens_per_s / plain.saturated().tokens_per_s
    assert 0.05 < lost < 0.15  # one GB is a tenth of this throughput


def test_a_model_that_does_not_fit_says_what_it_needs():
    with pytest.raises(PuzzleError, match=r"needs 1\d\d\.\d GiB for its weights and one request"):
        served(LLAMA_70B, BLOCKS_70B, 128, 128, weights="bfloat16").saturated()


def test_the_best_batch_keeps_latency_limits():
    whole = served(LLAMA_8B, BLOCKS_8B, 128, 1024)
    free = whole.best()
    assert free.tokens_per_s == whole.saturated().tokens_per_s
    held = whole.best(tpot_s=free.tpot_s / 2)
    assert held.batch < free.batch
    assert held.tpot_s <= free.tpot_s / 2
    assert whole.best(tpot_s=1e-6) is None


def test_requests_longer_than_the_parents_positions_are_refused():
    with pytest.raises(PuzzleError, match="needs 200000 positions"):
        served(replace(LLAMA_8B), BLOCKS_8B, 100000, 100000)
