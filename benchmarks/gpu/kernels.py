"""Every kernel of `blocks/kernels` against the best library kernel, on the GPU at hand.

    python benchmarks/gpu/kernels.py [part of a case's name ...] [--again]

First every kernel is compared with its torch reference at odd sizes and with the library at the
size to be timed; a kernel that is wrong is reported and not timed. Then both are timed alternately
as CUDA graphs over rotating inputs larger than the L2 cache. Rows are written one by one to
`benchmarks/results/kernels_<device>.json`; running again times what is missing, or what was
measured with other kernels or versions (everything with --again).

Columns: `ratio` is the best library time over the Triton time (above 1 Triton is faster);
`copy_ratio` the kernel's bytes a second over those of a copy. Times are seconds, medians of
samples; spread is (90th - 10th percentile) / median.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import torch
from kernels_cases import cases
from kernels_rows import kept, line, run_case, summary
from kernels_timing import copy_bytes_s

sys.path.insert(0, str(Path(__file__).parents[1]))
import record


def main() -> int:
    """Check, time and write what is missing; 1 when a kernel is wrong, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help="only cases whose name contains one of these")
    parser.add_argument("--again", action="store_true", help="time everything again")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("This machine has no CUDA device, and Triton kernels are timed on one.")
        return 2
    torch.set_default_device("cuda")
    name = "kernels_" + re.sub(r"\W+", "_", torch.cuda.get_device_name().lower())
    path = record.RESULTS / f"{name}.json"
    every = cases()
    rows = json.loads(path.read_text())["rows"] if path.exists() and not options.again else []
    rows = kept(rows, (case.name for case in every))
    done = {row["case"] for row in rows}
    chosen = [c for c in every if not options.parts or any(p in c.name for p in options.parts)]
    copy_rate = copy_bytes_s()
    print(f"copy: {copy_rate / 1e12:.2f} TB/s")
    for case in chosen:
        if case.name in done:
            continue
        rows.append(run_case(case, copy_rate) | {"copy_tb_s": copy_rate / 1e12})
        record.write(name, summary(rows), rows)
        print(line(rows[-1]), flush=True)
        torch.cuda.empty_cache()
    print(f"{path}: {json.dumps(summary(rows))}")
    return 1 if any("wrong" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
