"""What is here and what is not, and why: versions, devices, optional packages."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator

import torch

from puzzle.device import multiplies_bfloat16
from puzzle.provenance import versions
from puzzle.units import show

# optional package -> what it is for, and the extra that brings it
OPTIONAL = {
    "datasets": ("hub datasets as --data", "data"),
    "aiconfigurator_core": ("public tables of measured kernels", "tables"),
}


def checkup() -> Iterator[tuple[str, str]]:
    """Pairs of what was looked for and what was found."""
    yield from versions().items()
    yield "cores", f"{os.cpu_count()}, of which torch uses {torch.get_num_threads()}"
    yield "vectors", _vectors(torch.backends.cpu.get_cpu_capability(), multiplies_bfloat16())
    yield "memory", show(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "B")
    yield "free disk here", show(shutil.disk_usage(".").free, "B")
    yield "GPU", _gpu()
    yield "triton", _triton()
    for package, (use, extra) in OPTIONAL.items():
        there = importlib.util.find_spec(package) is not None
        missing = f"not installed; pip install 'puzzle-nas[{extra}]' brings {use}"
        yield package, f"installed: {use}" if there else missing


def _vectors(capability: str, bfloat16: bool) -> str:
    """The processor's, and what to make of how it multiplies bfloat16: with AVX2 it does not.

    >>> _vectors("AVX2", False)
    'AVX2: matrices of bfloat16 are far slower than float32 here, so leave dtype at float32'
    """
    if bfloat16:
        fast = "dtype=bfloat16 of distill, mend and heal trains faster"
        return f"{capability}, multiplies bfloat16: {fast}"
    if capability == "AVX2":
        slow = "matrices of bfloat16 are far slower than float32 here, so leave dtype at float32"
        return f"{capability}: {slow}"
    return capability


def _gpu() -> str:
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        return f"{device.name}, {show(device.total_memory, 'B')}: searches compute there"
    if torch.version.cuda is None:
        return f"none used: torch {torch.__version__} is built without CUDA"
    return "none found by torch; nvidia-smi tells whether the driver sees one"


def _triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "not installed: it comes for Linux on x86-64"
    if not torch.cuda.is_available():
        return "installed, but without a GPU there is nothing for its kernels to run on"
    return "installed: puzzle profile times its kernels beside torch's"
