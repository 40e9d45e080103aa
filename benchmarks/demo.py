"""Time and memory of whole searches: the demonstration, and SmolLM2-135M with few tokens.

    python benchmarks/demo.py WORK

Runs `puzzle search` as a user does, in a process of its own, and reads time and memory from the
run directory. WORK keeps the run directories; a finished run is not run again. The SmolLM2
checkpoint comes from `benchmarks/parents/smollm2.py`.
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


def rows(name: str, result: Result) -> list[dict[str, Any]]:
    """Time and memory by stage, the closing table, and every score."""
    found: list[dict[str, Any]] = []
    for kind, frame in (
        ("stage", result.timings),
        ("model", result.table.T.rename_axis("model").reset_index()),
        ("score", result.scores[["layer", "block", "loss", "std_error", "chosen"]]),
    ):
        found += [{"run": name, "kind": kind, **row} for row in frame.to_dict("records")]
    return found


def main() -> None:
    """Run what is missing and write the results."""
    work = Path(sys.argv[1])
    work.mkdir(parents=True, exist_ok=True)
    results = {name: run(name, work) for name in RUNS}
    demo = results["demo"]
    seconds = {name: float((work / f"{name}.seconds").read_text()) for name in RUNS}
    peaks = {name: int(result.timings["peak_bytes"].max()) for name, result in results.items()}
    record.write(
        "demo",
        {
            "demo_s": seconds["demo"],
            "demo_peak_bytes": peaks["demo"],
            "smollm2_s": seconds["smollm2"],
            "smollm2_peak_bytes": peaks["smollm2"],
            "uniform_kl": demo.value("KL to the parent", "uniform"),
            "child_kl": demo.value("KL to the parent", "child"),
            "child_kl_healed": demo.value("KL to the parent", "healed"),
            "predicted_kl": demo.predicted_kl,
            "predicted_speedup": demo.value("throughput", "child")
            / demo.value("throughput", "parent"),
        },
        [row for name, result in results.items() for row in rows(name, result)],
    )


if __name__ == "__main__":
    main()
