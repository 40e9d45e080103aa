"""Devices as data: peaks, bandwidth, memory and launch time from their data sheets.

`efficiency` is one fraction for each kind of work, for the search's static roofline. `kernels` and
`link` describe serving kernels and all-reduce more closely, for whole models (`kernels.py`).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import PositiveFloat

from puzzle.errors import PuzzleError
from puzzle.strict_yaml import StrictModel, did_you_mean, load_yaml_model

Dtype = Literal["float32", "bfloat16", "float8"]
Weights = Literal["float32", "bfloat16", "float8", "int4"]  # int4 is widened before it multiplies
BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float8": 1}
INT4_BYTES = 0.53125  # four bits, and a bfloat16 scale for each group of 128
HERE = "cpu-here"  # this machine, measured when asked for
USABLE = 0.9  # of the memory; engines leave the rest to activations (vLLM's own default)


class Efficiency(StrictModel):
    """The fraction of each peak that good kernels reach."""

    gemm: PositiveFloat
    attention: PositiveFloat
    bandwidth: PositiveFloat


class KernelFit(StrictModel):
    """What serving kernels reach, fitted to measured kernel tables; `devices.yaml` says which."""

    gemm: dict[Dtype, PositiveFloat]  # of the peak, by what is multiplied
    bandwidth: PositiveFloat  # of the data sheet's, for weights and activations
    bend: PositiveFloat  # time is (compute^bend + memory^bend)^(1/bend)
    launch_us: PositiveFloat  # a kernel's time beside its work
    cache_bandwidth: PositiveFloat  # of the data sheet's, for keys and values of decode
    prefill_tflops: dict[Dtype, PositiveFloat]  # of long prompts, by the cache's type
    prefill_half_tokens: PositiveFloat  # prompts of this length reach half of that


class Link(StrictModel):
    """How GPUs of one machine talk: all-reduce over 2, 4 or 8 of them."""

    bus_gb_s: dict[int, PositiveFloat]  # by GPUs; 2 (n - 1) / n of the message crosses the bus
    latency_us: PositiveFloat  # of one all-reduce inside a model, times 1 + log2 n


class Device(StrictModel):
    """One device, in the units of data sheets; `devices.yaml` gives the source of each number."""

    memory_gib: PositiveFloat
    bandwidth_tb_s: PositiveFloat
    peak_tflops: dict[Dtype, PositiveFloat]  # dense, without sparsity
    launch_us: PositiveFloat  # what one more kernel costs, however small
    efficiency: Efficiency
    kernels: KernelFit | None = None  # None: as `efficiency` says, the roof not bent
    link: Link | None = None  # None: one GPU only

    @property
    def fit(self) -> KernelFit:
        """What serving kernels reach: measured, or what `efficiency` comes to."""
        if self.kernels:
            return self.kernels
        reached, peaks = self.efficiency, self.peak_tflops
        attention = {dtype: peak * reached.attention for dtype, peak in peaks.items()}
        return KernelFit(
            gemm=dict.fromkeys(peaks, reached.gemm),
            bandwidth=reached.bandwidth,
            bend=8.0,
            launch_us=self.launch_us,
            cache_bandwidth=reached.bandwidth,
            prefill_tflops=attention,
            prefill_half_tokens=1.0,
        )

    @property
    def memory_bytes(self) -> int:
        """Memory that there is."""
        return int(self.memory_gib * 2**30)

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
        return self.peak_flops_per_s(dtype) * self.efficiency.gemm

    def attention_flops_per_s(self, dtype: Dtype) -> float:
        """Attention arithmetic that good kernels reach."""
        return self.peak_flops_per_s(dtype) * self.efficiency.attention

    def peak_flops_per_s(self, dtype: Dtype) -> float:
        """The data sheet's arithmetic; PuzzleError where the device has none of this type."""
        if dtype not in self.peak_tflops:
            raise PuzzleError(
                f"the device does not compute in {dtype}; set the workload's weights to one of "
                f"{', '.join(self.peak_tflops)}"
            )
        return self.peak_tflops[dtype] * 1e12


def bytes_per_weight(weights: Weights) -> float:
    """Bytes of one weight, scales included."""
    return INT4_BYTES if weights == "int4" else BYTES[weights]


def arithmetic(weights: Weights) -> Dtype:
    """The type that is multiplied: weight-only int4 becomes bfloat16 in registers."""
    return "bfloat16" if weights == "int4" else weights


class _Catalog(StrictModel):
    devices: dict[str, Device]


@cache
def devices() -> dict[str, Device]:
    """All known devices by name."""
    return load_yaml_model(Path(__file__).with_name("devices.yaml"), _Catalog).devices


def device(name: str) -> Device:
    """One device, or this machine's processor; PuzzleError names the nearest it knows."""
    if name == HERE:
        from puzzle.hardware.here import here

        return here()
    if name not in devices():
        raise PuzzleError(f"hardware {name!r} is unknown; {did_you_mean(name, [*devices(), HERE])}")
    return devices()[name]
