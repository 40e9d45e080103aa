"""Predictions against published throughputs keep to the errors we claim."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "throughput.py"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="no source tree here")


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec = importlib.util.spec_from_file_location("benchmark_of_throughput", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


def test_errors_keep_to_the_targets_on_every_device(benchmark):
    rows, left_out = benchmark.read(benchmark.ROWS)
    assert not left_out
    signed = benchmark.errors(rows)
    for name, figures in {
        "all": benchmark.figures(rows, signed),
        **benchmark.grouped(rows, signed, lambda row: row.device),
    }.items():
        assert figures["median_ape"] <= 0.08, name
        assert figures["mean_ape"] <= 0.10, name
        assert figures["p90_ape"] <= 0.18, name
        assert figures["spearman"] >= 0.98, name


def test_mixtures_of_experts_are_predicted_without_a_fit(benchmark):
    """18 figures of Mixtral 8x7B, to which no constant was fitted."""
    rows, _ = benchmark.read(benchmark.ROWS)
    fitted = benchmark.dense(rows)
    mixtures = [row for row in rows if row not in fitted]
    assert len(mixtures) == 18
    figures = benchmark.figures(mixtures, benchmark.errors(mixtures))
    assert figures["mean_ape"] <= 0.13
    assert figures["spearman"] >= 0.99


def test_on_one_gpu_the_roofline_is_within_a_tenth(benchmark):
    rows, _ = benchmark.read(benchmark.ROWS)
    for name in benchmark.ROOFLINE_DEVICES:
        alone = [row for row in rows if row.gpus == 1 and row.device == name]
        assert np.abs(benchmark.errors(alone)).mean() <= 0.10, name


def test_rows_that_cannot_be_predicted_are_counted_with_their_reason(benchmark, tmp_path):
    header, first, *_ = benchmark.ROWS.read_text().splitlines()
    path = tmp_path / "rows.csv"
    path.write_text("\n".join([header, first, first.replace("H200-SXM-141GB", "TPU")]))
    rows, left_out = benchmark.read(path)
    assert len(rows) == 1
    assert dict(left_out) == {"gpu TPU": 1}
    assert rows[0].tokens_per_s == 29526.04
