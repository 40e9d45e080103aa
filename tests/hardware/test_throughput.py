"""Whole-model predictions: definitions, the best batch, and parents too large for one GPU."""

import pytest

from puzzle.budget import Workload
from puzzle.errors import PuzzleError
from puzzle.hardware.cost import Cost
from puzzle.hardware.throughput import best, predict, reference

WORK = Workload(prompt_tokens=10, new_tokens=5, batches=(1, 4, 16))
# twice the time for four times the requests; the cache grows with them
COSTS = {
    batch: Cost(params=50, weight_bytes=100, kv_bytes=10 * batch, prefill_s=1.0 * s, decode_s=3 * s)
    for batch, s in ((1, 1.0), (4, 2.0), (16, 4.0))
}


def test_a_prediction_is_what_its_definitions_say():
    prediction = predict(COSTS[4], WORK, 4)
    assert prediction.tokens_per_s == pytest.approx(4 * 5 / 8.0)
    assert prediction.ttft_s == 2.0
    assert prediction.tpot_s == pytest.approx(6.0 / 5)
    assert prediction.memory_bytes == 140 == prediction.weight_bytes + prediction.kv_bytes
    whole_s = prediction.ttft_s + prediction.tpot_s * WORK.new_tokens
    assert whole_s == pytest.approx(COSTS[4].total_s)


@pytest.mark.parametrize(
    ("memory_bytes", "batch"), [(1000, 16), (260, 16), (259, 4), (110, 1), (109, None)]
)
def test_the_best_batch_is_the_fastest_that_fits(memory_bytes, batch):
    found = best(COSTS, WORK, memory_bytes)
    assert (found and found.batch) == batch


def test_the_largest_batch_is_not_always_the_best():
    slow = COSTS | {16: Cost(weight_bytes=100, prefill_s=100.0, decode_s=100.0)}
    assert best(slow, WORK, 1000).batch == 4


def test_a_parent_on_one_gpu_is_itself():
    assert reference(COSTS, WORK, 1000) == best(COSTS, WORK, 1000)


def test_a_parent_on_several_gpus_divides_memory_and_time_perfectly():
    found = reference(COSTS, WORK, 70)  # 110 bytes at batch 1, 140 at batch 4: two GPUs
    alone = best(COSTS, WORK, 140)
    assert (found.gpus, found.batch) == (2, 4)
    assert found.tokens_per_s == alone.tokens_per_s  # per GPU: twice as fast, half to each
    assert found.ttft_s == alone.ttft_s / 2
    assert found.memory_bytes == alone.memory_bytes


def test_a_parent_beyond_all_gpus_is_an_error():
    with pytest.raises(PuzzleError, match="the parent needs 110 B at the smallest batch"):
        reference(COSTS, WORK, 0.01)
