"""Devices as data: peaks, bandwidth, memory and launch time from their data sheets."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import PositiveFloat

from puzzle.errors import PuzzleError
from puzzle.strict_yaml import StrictModel, did_you_mean, load_yaml_model

Dtype = Literal["float32", "bfloat16", "float8"]
BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float8": 1}
USABLE = 0.9  # of the memory; engines leave the rest to activations (vLLM's own default)


class Efficiency(StrictModel):
    """The fraction of each peak that good kernels reach."""

    gemm: PositiveFloat
    attention: PositiveFloat
    bandwidth: PositiveFloat


class Device(StrictModel):
    """One device, in the units of data sheets; `devices.yaml` gives the source of each number."""

    memory_gib: PositiveFloat
    bandwidth_tb_s: PositiveFloat
    peak_tflops: dict[Dtype, PositiveFloat]  # dense, without sparsity
    launch_us: PositiveFloat  # what one more kernel costs, however small
    efficiency: Efficiency

    @property
    def usable_bytes(self) -> int:
        """Memory that weights and cache may fill."""
        return int(USABLE * self.memory_gib * 2**30)

    @property
    def launch_s(self) -> float:
        """Seconds that a kernel costs beside its work."""
        return self.launch_us * 1e-6

    @property
    def bytes_per_s(self) -> float:
        """Memory bandwidth that good kernels reach."""
        return self.bandwidth_tb_s * 1e12 * self.efficiency.bandwidth

    def gemm_flops_per_s(self, dtype: Dtype) -> float:
        """Matrix arithmetic that good kernels reach."""
        return self._peak(dtype) * self.efficiency.gemm

    def attention_flops_per_s(self, dtype: Dtype) -> float:
        """Attention arithmetic that good kernels reach."""
        return self._peak(dtype) * self.efficiency.attention

    def _peak(self, dtype: Dtype) -> float:
        if dtype not in self.peak_tflops:
            raise PuzzleError(
                f"the device does not compute in {dtype}; set the workload's weights to one of "
                f"{', '.join(self.peak_tflops)}"
            )
        return self.peak_tflops[dtype] * 1e12


class _Catalog(StrictModel):
    devices: dict[str, Device]


@cache
def devices() -> dict[str, Device]:
    """All known devices by name."""
    return load_yaml_model(Path(__file__).with_name("devices.yaml"), _Catalog).devices


def device(name: str) -> Device:
    """One device; PuzzleError names the nearest when there is no such device."""
    if name not in devices():
        raise PuzzleError(f"hardware {name!r} is unknown; {did_you_mean(name, devices())}")
    return devices()[name]
