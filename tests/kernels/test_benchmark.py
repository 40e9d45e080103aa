"""The logic of the GPU benchmark, on a machine that need not have one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import whole
from kernels_cases import cases
from kernels_checks import _differ, error, odd_sizes, wrong
from kernels_rows import fingerprint, judge, kept, line, summary, versions
from kernels_timing import Timing, summarize
from transformers import LlamaConfig

from puzzle.blocks.variant import Block
from puzzle.hardware import measure
from puzzle.hardware.measure import Bench, Case

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "gpu"
BLOCKS = tuple(map(Block.parse, ("gqa2+ffn48", "noop+ffn96")))
TINY = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 97,
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("words", [["kernels.py"], ["warm.py"], ["whole.py", "table.csv"]])
def test_without_a_gpu_it_says_so_and_exits_2(words: list[str]) -> None:
    command = [sys.executable, SCRIPTS / words[0], *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout.startswith("This machine has no CUDA device, and ")
    assert done.stdout.endswith("one.\n")


def test_every_case_has_its_own_name_an_odd_size_and_consistent_shapes() -> None:
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names)
    assert {name.split()[0] for name in names} == set(odd_sizes())
    with torch.device("meta"):
        for case in cases():
            got = case.ours(*case.inputs())
            assert "meta" in case.why(*case.inputs())
            if "gqa" in case.name and "fp8" not in case.name:
                continue  # the library's attention has no kernel without storage
            for name, function in case.library.items():
                if name != "scaled_mm":
                    want = function(*case.inputs())
                    first = (got, want) if torch.is_tensor(got) else (got[0], want[0])
                    assert first[0].shape == first[1].shape


def test_the_reference_is_right_by_the_benchmark_s_own_measure() -> None:
    for ours, reference, make in odd_sizes().values():
        inputs = make()
        assert _differ("", ours, reference, inputs) == ""


def test_a_wrong_kernel_is_refused() -> None:
    x = torch.randn(5, 7)
    assert error(x, x) == 0
    assert error((x, x), (x, x + 1)) > 0.1
    assert error(x.fill_(torch.nan), torch.zeros(5, 7)) == float("inf")
    assert error(torch.zeros(7), torch.zeros(5, 7)) == float("inf")
    off = _differ("odd sizes", lambda x: 1.1 * x, lambda x: x, (torch.ones(3),))
    assert off == "odd sizes error 0.1 above 0.0001"
    case = cases()[0]
    with torch.device("meta"):
        assert "reference" in wrong(case, case.ours)  # nor is a reference timed as a kernel


def test_a_row_compares_with_the_best_library_and_the_copy() -> None:
    case = next(case for case in cases() if case.ratio and not case.copy_ratio)
    timings = {
        "triton": Timing(2.0, 0.1),
        "slow": Timing(9.0, 0.1),
        "fast": Timing(1.8, 0.1),
    }
    row = judge(case, timings, copy_rate=case.bytes)
    assert row["best_library"] == "fast"
    assert row["ratio"] == pytest.approx(0.9)
    assert row["copy_ratio"] == pytest.approx(0.5)
    assert row["met"]
    timings["fast"] = Timing(1.0, 0.1)
    row = judge(case, timings, copy_rate=1.0)
    assert not row["met"]
    assert "below target" in line(row | {"case": case.name})


def test_median_and_spread() -> None:
    timing = summarize([1.0] * 9 + [100.0])
    assert timing.median_s == 1.0
    assert summarize([float(n) for n in range(1, 12)]).spread == pytest.approx(8 / 6)


def test_only_rows_of_today_s_kernels_are_kept() -> None:
    now = {"kernels": fingerprint(), "versions": versions()}
    rows = [
        {"case": "a"} | now,
        {"case": "b"} | now | {"kernels": "other"},
        {"case": "gone"} | now,
    ]
    assert [row["case"] for row in kept(rows, ["a", "b"])] == ["a"]


def test_summary_counts_wrong_and_slow() -> None:
    rows = [
        {"case": "gemm bf16 1", "seconds": {}, "ratio": 0.5, "met": False},
        {"case": "gemm bf16 2", "seconds": {}, "ratio": 0.9, "met": True},
        {"case": "kl bf16 1", "wrong": "error"},
    ]
    assert summary(rows) == {
        "cases": 3,
        "wrong": 1,
        "below_target": 1,
        "ratio": {"gemm bf16": {"worst": 0.5, "median": 0.7}},
    }


@pytest.fixture
def times() -> whole.Times:
    """A table: a millisecond a half, ten outside."""
    names = ("outside", "gqa2+noop", "noop+ffn96", "noop+ffn48")
    cases = [Case(None, "prefill", 2, 8), Case(None, "decode", 2, 9), Case(None, "decode", 2, 12)]
    return {(name, case): 10e-3 if name == "outside" else 1e-3 for name in names for case in cases}


def test_a_prediction_is_the_sum_of_what_a_pass_runs(times: whole.Times) -> None:
    prompt, token = whole.passes(times, BLOCKS)
    assert (prompt.phase, token.phase, token.length) == ("prefill", "decode", 12)
    assert whole.predicted(times, BLOCKS, token) == pytest.approx(13e-3)
    slow = times | {("gqa2+noop", prompt): 1.0}
    assert whole.passes(slow, BLOCKS) == [token]
    del times["noop+ffn96", token]
    assert whole.passes(times, BLOCKS) == [prompt]


def test_children_hold_what_the_table_times(times: whole.Times) -> None:
    wanted = whole.passes(times, BLOCKS)
    del times["noop+ffn48", wanted[0]]
    first, last = whole.children(times, wanted, BLOCKS[:1] * 50, 2)
    assert first.count(BLOCKS[0]) > last.count(BLOCKS[0]) > 0
    others = {str(block) for block in last} - {str(BLOCKS[0])}
    assert "noop+ffn96" in others
    assert "noop+ffn48" in others  # a half of the parent's own


@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_whole_children_run_and_their_errors_are_summed_up(
    kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "TO", {"dtype": torch.float32, "device": "cpu"})
    monkeypatch.setattr(measure, "LEAST_S", 0.0)
    bench = Bench(LlamaConfig(**TINY), torch.float32, "cpu")
    wanted = [Case(None, phase, 2, 8, kernels) for phase in ("prefill", "decode")]
    found = list(whole.timed(bench, BLOCKS, wanted))
    assert [case for case, _ in found] == wanted
    rows = [{"child": 1, "phase": case.phase, "kernels": kernels} | row for case, row in found]
    rows = [row | {"predicted_s": 1.1 * row["measured_s"]} for row in rows]
    summed = whole.summary([*rows, {"child": 1, "failed": "no memory"}])
    assert summed["failed"] == 1
    assert summed[f"decode_{kernels}_max_ape"] == pytest.approx(0.1)
