"""Time and memory of whole searches: the demonstration, and SmolLM2-135M with few tokens.

    python benchmarks/demo.py WORK [demo] [smollm2]

Runs `puzzle search` as a user does, in a process of its own, and reads time and memory from the
run directory. WORK keeps the run directories; a finished run is not run again, and figures of a
search that is not named stay as they were, with the commit they are of. The SmolLM2 checkpoint
comes from `benchmarks/parents/smollm2.py`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import record

from puzzle import Result, open_result

ROOT = Path(__file__).parents[1]
RUNS = {
    "demo": ["--budget", "h100-1gpu"],
    "smollm2": ["--config", "examples/configs/smollm2.yaml"],
}


def run(name: str, work: Path) -> Result:
    """Run one search to its end; what it printed lies beside the run directory."""
    out, printed = work / name, work / f"{name}.txt"
    if not printed.exists():
        command = [sys.executable, "-m", "puzzle", "search", *RUNS[name], "--out", str(out)]
        begin = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        print(f"{name}: {time.monotonic() - begin:.0f} s")
        printed.write_text(done.stdout)
        (work / f"{name}.seconds").write_text(str(time.monotonic() - begin))
    return open_result(out)


def rows(result: Result) -> list[dict[str, Any]]:
    """Time and memory by stage, the closing table, and every score."""
    found: list[dict[str, Any]] = []
    for kind, frame in (
        ("stage", result.timings),
        ("model", result.table.T.rename_axis("model").reset_index()),
        ("score", result.scores[["layer", "block", "loss", "std_error", "chosen"]]),
    ):
        found += [{"kind": kind, **row} for row in frame.to_dict("records")]
    return found


def figures(name: str, result: Result, work: Path) -> dict[str, Any]:
    """The figures the README quotes."""
    found = {
        f"{name}_s": float((work / f"{name}.seconds").read_text()),
        f"{name}_peak_bytes": int(result.timings["peak_bytes"].max()),
    }
    if name != "demo":
        return found
    return {
        **found,
        "uniform_kl": result.value("KL to the parent", "uniform"),
        "child_kl": result.value("KL to the parent", "child"),
        "child_kl_healed": result.value("KL to the parent", "healed"),
        "predicted_kl": result.predicted_kl,
        "predicted_speedup": result.value("throughput", "child")
        / result.value("throughput", "parent"),
    }


def main() -> None:
    """Run what is missing of the searches named, all by default, and write the results."""
    work, names = Path(sys.argv[1]), sys.argv[2:] or list(RUNS)
    work.mkdir(parents=True, exist_ok=True)
    for name in names:
        result = run(name, work)
        record.update("demo", ("run", name), figures(name, result, work), rows(result))


if __name__ == "__main__":
    main()
