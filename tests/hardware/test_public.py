"""The optional public tables, with a stand-in of their layout; the real ones where installed."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest

from puzzle.budget import Workload
from puzzle.errors import PuzzleError
from puzzle.hardware import public
from puzzle.hardware.kernels import Heads
from puzzle.hardware.public import Public
from puzzle.hardware.published import model
from puzzle.hardware.serving import Model
from puzzle.hardware.tables import open_source

HEADS = Heads(8, 1, 128, "float8")
REAL = importlib.util.find_spec(public.PACKAGE) is not None


def write(folder, op, framework, file, **columns):
    path = folder / "h100_sxm" / op / framework / "1.0" / file
    path.parent.mkdir(parents=True)
    pd.DataFrame(columns).to_parquet(path)


@pytest.fixture
def tables(tmp_path, monkeypatch):
    write(
        tmp_path,
        "gemm",
        "trtllm",
        "gemm_perf.parquet",
        gemm_dtype=["fp8"] * 4,
        n=[256, 256, 1024, 1024],
        k=[512] * 4,
        m=[1, 100] * 2,
        latency=[0.001, 0.010, 0.004, 0.040],
    )
    write(
        tmp_path,
        "attention",
        "trtllm",
        "generation_attention_perf.parquet",
        kv_cache_dtype=["fp8"] * 2,
        head_dim=[128] * 2,
        num_key_value_heads=[1] * 2,
        num_heads=[8] * 2,
        step=[99, 999],
        batch_size=[4, 4],
        window_size=[0, 0],
        latency=[0.01, 1e-9],
    )
    write(
        tmp_path,
        "comm",
        "nccl",
        "nccl_perf.parquet",
        op_name=["all_reduce"] * 2,
        nccl_dtype=["half"] * 2,
        num_gpus=[2, 2],
        message_size=[1024, 4096],
        latency=[0.002, 0.008],
    )
    monkeypatch.setattr(public, "_data", lambda: tmp_path)
    for cached in (public._gemms, public._attention, public._all_reduce):
        cached.cache_clear()
    yield Public.of("h100-sxm")
    for cached in (public._gemms, public._attention, public._all_reduce):
        cached.cache_clear()


def test_milliseconds_become_seconds_between_the_measured_sizes(tables):
    found = tables.gemm(10, 512, 512, "float8")
    assert found.seconds == pytest.approx(6.32e-6, rel=1e-2)
    assert found.sources == {"aiconfigurator-core"}
    assert tables.gemm(1000, 512, 512, "float8").sources == {"beyond aiconfigurator-core"}
    assert tables.all_reduce(2048, 2).seconds == pytest.approx(4e-6)
    assert tables.all_reduce(2048, 1).seconds == 0


def test_what_the_tables_lack_is_the_rooflines(tables):
    for found in (
        tables.gemm(10, 512, 512, "bfloat16"),
        tables.elementwise(1e6),
        tables.decode_attention(Heads(8, 1, 64, "float8"), 4, 100),
        tables.prefill_attention(HEADS, 1, 128, 128 * 129 // 2),
        tables.all_reduce(2048, 4),
    ):
        assert found.sources == {"roofline"}


def test_a_table_that_beats_the_memory_is_not_believed(tables):
    assert tables.decode_attention(HEADS, 4, 100).seconds == pytest.approx(1e-5)
    read_s = 2 * 4 * 1000 * 128 / 3.35e12
    assert tables.decode_attention(HEADS, 4, 1000).seconds == pytest.approx(read_s)


def test_a_device_without_tables_names_those_with(tables):
    with pytest.raises(PuzzleError, match="no tables of rtx4090; it has h100-sxm"):
        Public.of("rtx4090")


@pytest.mark.skipif(REAL, reason="the package is installed")
def test_without_the_package_it_says_what_to_install():
    with pytest.raises(PuzzleError, match=r"pip install 'puzzle-nas\[tables\]'"):
        Public.of("h100-sxm")


@pytest.mark.skipif(not REAL, reason="needs aiconfigurator-core")
def test_the_real_tables_predict_a_published_throughput():
    shape, blocks = model("llama-3.1-8b")
    work = Workload(
        prompt_tokens=1000, new_tokens=1000, batches=(1,), weights="float8", kv="float8"
    )
    source = open_source("public", shape, work, "h100-sxm")
    found = Model.of(source, blocks, source.kernels.device).saturated()
    assert found.tokens_per_s == pytest.approx(15244.78, rel=0.15)


def test_the_newest_version_is_the_highest_number():
    paths = [Path(f"gemm/trtllm/{version}/gemm.parquet") for version in ("1.10.0", "1.9.0", "1.0")]
    assert max(paths, key=public._version).parent.name == "1.10.0"
