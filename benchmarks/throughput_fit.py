"""Fit the few constants that kernel tables cannot give to published throughputs of whole models.

They belong to links and to the engine, never to a model: the latency of one all-reduce over
NVLink 4, NVLink 3 and PCIe, the bandwidth of PCIe between GPUs, and the arithmetic at which decode
attention converts a float8 cache. `python benchmarks/throughput_fit.py` prints them; they are
written into devices.yaml and kernels.py by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from throughput import ROWS, Machine, Row, dense, errors, figures, read

from puzzle.hardware.devices import Link, device
from puzzle.hardware.kernels import Roofline

NVLINK4 = ("h100-sxm", "h200-sxm")
STEPS = (2.0, 1.3, 1.1, 1.03, 1.01)  # factors that coordinate descent tries, coarse to fine
ROUNDED = 0.05  # errors beyond this count linearly, not squared: some rows are odd


@dataclass(frozen=True)
class Constants:
    """What is fitted; microseconds, GB/s and TFLOP/s.

    Fits start from what is known without whole models, so that a constant which the rows at hand
    do not show stays unfitted: the latency of a bare all-reduce in NCCL's tables, PCIe's bus there,
    and no limit to conversion.
    """

    nvlink4_us: float = 4.0
    nvlink3_us: float = 5.5
    pcie_us: float = 6.0
    pcie_gb_s: float = 10.0
    float8_cache_tflops: float = 1000.0

    def kernels(self) -> Machine:
        """Devices with these constants."""

        def machine(name: str) -> Roofline:
            found = device(name)
            assert found.link
            bus = found.link.bus_gb_s
            latency_us = self.nvlink4_us if name in NVLINK4 else self.nvlink3_us
            if name == "l40s":
                bus, latency_us = dict.fromkeys(bus, self.pcie_gb_s), self.pcie_us
            link = Link(bus_gb_s=bus, latency_us=latency_us)
            return Roofline(found.model_copy(update={"link": link}), self.float8_cache_tflops)

        return machine


def fit(rows: Sequence[Row], start: Constants = Constants()) -> Constants:
    """The constants of least error on these rows, by coordinate descent."""
    values, names = dict(vars(start)), list(vars(start))
    best = _loss(rows, Constants(**values))
    for factor in STEPS:
        improved = True
        while improved:
            improved = False
            for name in names:
                for times in (factor, 1 / factor):
                    tried = {**values, name: values[name] * times}
                    loss = _loss(rows, Constants(**tried))
                    if loss < best:
                        values, best, improved = tried, loss, True
    return Constants(**values)


def _loss(rows: Sequence[Row], constants: Constants) -> float:
    off = np.abs(np.log1p(errors(rows, constants.kernels()))) / ROUNDED
    return float(np.where(off < 1, off**2, 2 * off - 1).sum())


def held_out(rows: Sequence[Row], group: Callable[[Row], object]) -> dict[str, float]:
    """Errors of each group's rows with constants fitted to the other groups."""
    signed, members = np.zeros(len(rows)), [group(row) for row in rows]
    for name in sorted(set(members), key=str):
        held = [i for i, member in enumerate(members) if member == name]
        others = [row for row, member in zip(rows, members) if member != name]
        signed[held] = errors([rows[i] for i in held], fit(others).kernels())
    return figures(rows, signed)


def cross_validated(rows: Sequence[Row]) -> dict[str, Any]:
    """Errors on rows unseen by the fit: by thirds of the workloads, by model, by number of GPUs."""
    workloads = sorted({row.lengths for row in rows})
    return {
        "by_workload": held_out(rows, lambda row: workloads.index(row.lengths) % 3),
        "by_model": held_out(rows, lambda row: row.model),
        "by_gpus": held_out(rows, lambda row: row.gpus),
    }


if __name__ == "__main__":
    found, _ = read(ROWS)
    print(fit(dense(found)))
