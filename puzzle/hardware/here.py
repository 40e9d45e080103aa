"""This machine as a device: `cpu-here`, its peak and bandwidth measured in about a second."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from puzzle.hardware.devices import Device, Efficiency
from puzzle.run import fingerprint

SIDE = 1024  # of the matrices that measure the peak
COPIED_BYTES = 256 * 2**20  # more than caches hold
SAMPLES = 7


@cache
def here() -> Device:
    """This machine, measured once: later processes read what was found, so that prices stay.

    It lies in the user's cache, `puzzle/cpu-here.*.json`; delete it to measure anew.
    """
    import torch

    asked = [processor(), torch.get_num_threads(), torch.__version__]
    place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "puzzle"
    path = place / f"cpu-here.{fingerprint(asked)}.json"
    with contextlib.suppress(OSError, ValueError):
        return Device.model_validate_json(path.read_text())
    found = measured()
    with contextlib.suppress(OSError):  # a home that cannot be written to: measured every time
        place.mkdir(parents=True, exist_ok=True)
        path.write_text(found.model_dump_json())
    return found


def measured() -> Device:
    """The processor's cores as torch uses them; what was measured is reached: fractions of 1.

    Peak: the best float32 matrix product. Bandwidth: the best copy, both directions counted.
    Launch: a product of four numbers, which is what torch and Python cost beside the work.
    """
    import torch

    square, tiny = torch.ones(SIDE, SIDE), torch.ones(2, 2)
    source = torch.ones(COPIED_BYTES // 4)
    target = torch.empty_like(source)
    flops_per_s = 2 * SIDE**3 / best_s(lambda: square @ square)
    bytes_per_s = 2 * COPIED_BYTES / best_s(lambda: target.copy_(source))
    launch_s = best_s(lambda: [tiny @ tiny for _ in range(1000)]) / 1000
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    tflops = flops_per_s / 1e12
    return Device(
        memory_gib=memory_bytes / 2**30,
        bandwidth_tb_s=bytes_per_s / 1e12,
        peak_tflops={"float32": tflops, "bfloat16": tflops},
        launch_us=launch_s * 1e6,
        efficiency=Efficiency(gemm=1.0, attention=0.5, bandwidth=1.0),
    )


def processor() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def best_s(run: Callable[[], object]) -> float:
    """Seconds of the fastest of a few runs."""
    times = []
    for _ in range(SAMPLES):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)
