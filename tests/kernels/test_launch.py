"""The launch table, the poison of the tests, and what a call is."""

from __future__ import annotations

import pytest
import torch

from puzzle.blocks.kernels.gemm import triton as gemm
from puzzle.blocks.kernels.launch import INTERPRETED, LAUNCHES, dot_type, row_launch, rows
from puzzle.blocks.kernels.relu2 import triton as relu2


def test_memory_is_poisoned(random) -> None:
    x = random(3, 4)
    assert torch.empty(5).isnan().all()
    assert x.new_empty(2, 2).isnan().all()
    assert relu2.forward_call(x.contiguous()).arguments["y_ptr"].isnan().all()
    assert x.as_strided((1,), (1,), x.storage_offset() + 4).isnan().all()


def test_tiles_are_powers_of_two() -> None:
    for launch in LAUNCHES.values():
        assert all(size & (size - 1) == 0 for size in launch.tiles.values())
        assert launch.warps & (launch.warps - 1) == 0


@pytest.mark.parametrize("columns", [1, 1024, 1025, 16384])
def test_a_row_fits_its_tile(columns: int) -> None:
    tile = row_launch("rmsnorm", columns).tiles["BLOCK"]
    assert columns <= tile <= max(1024, 2 * columns)


def test_every_batch_has_a_launch() -> None:
    for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float32):
        for T in (1, 16, 17, 64, 65, 128, 129, 10_000):
            assert gemm.gemm_launch(T, 4096, dtype) in LAUNCHES.values()


def test_large_tiles_only_where_they_fill_the_device_and_then_unsplit() -> None:
    large = LAUNCHES["gemm-large"]
    assert gemm.gemm_launch(4096, 4096, torch.bfloat16) is large
    assert gemm.split_count(large, 4096, 4096, 14336) == 1
    small = gemm.gemm_launch(256, 4096, torch.bfloat16)
    assert small is LAUNCHES["gemm-128"]
    assert gemm.split_count(small, 256, 4096, 14336) == 4


def test_bf16_is_multiplied_as_fp32_by_the_interpreter_only() -> None:
    assert dot_type(torch.bfloat16).name == ("fp32" if INTERPRETED else "bf16")
    assert dot_type(torch.float16).name == "fp16"


def test_rows_is_a_view_where_it_can_be(random) -> None:
    x = random(2, 3, 4).contiguous()
    assert rows(x).data_ptr() == x.data_ptr()
    assert rows(x.transpose(1, 2)).stride(-1) == 1
