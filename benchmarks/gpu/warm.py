"""Compile what `kernels.py` times, several cases at once, so that it finds all in Triton's cache.

    python benchmarks/gpu/warm.py [PROCESSES]

Every case runs once and is checked, not timed. Exit codes: 0 done, 1 a case failed, 2 no CUDA
device.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from kernels_cases import cases
from kernels_rows import checked


def main() -> int:
    """Run all cases in so many processes; one line for each that fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("processes", nargs="?", type=int, default=8)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("This machine has no CUDA device, and Triton kernels are compiled for one.")
        return 2
    begin = time.monotonic()
    names = [case.name for case in cases()]
    failed = 0
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        for name, found in zip(names, pool.map(answer, names)):
            if found:
                failed += 1
                print(f"{name}: {found}", flush=True)
    print(f"{len(names)} cases in {time.monotonic() - begin:.0f} s, {failed} failed")
    return 1 if failed else 0


def answer(name: str) -> str:
    """Why a case fails; empty when it is right."""
    case = next(case for case in cases() if case.name == name)
    torch.set_default_device("cuda")
    try:
        case.ours(*case.inputs())  # compiles, even where the check finds no memory
        return checked(case)[0]
    except Exception as error:  # a process that lives goes on to other cases
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    finally:
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
