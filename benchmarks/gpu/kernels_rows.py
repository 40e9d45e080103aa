"""The rows of the results file: how one is made, which are kept, what they come to."""

from __future__ import annotations

import hashlib
import importlib.metadata
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kernels_cases import Case
from kernels_checks import wrong
from kernels_timing import Timing, measure
from kernels_torch import Function

KERNELS = Path(__file__).parents[2] / "blocks" / "kernels"


def run_case(case: Case, copy_rate: float) -> dict[str, Any]:
    """The row of one case: wrong, or timed."""
    row: dict[str, Any] = {"case": case.name, "kernels": fingerprint(), "versions": versions()}
    reason, working, broken = checked(case)
    if reason:
        return row | {"wrong": reason}
    library = {name: function for name, function in working.items() if name != "reference"}
    timings = measure({"triton": case.ours} | library, case.inputs)
    return row | judge(case, timings, copy_rate) | ({"unavailable": broken} if broken else {})


def checked(case: Case) -> tuple[str, dict[str, Function], dict[str, str]]:
    """Why the case must not be timed, else empty; what of the library runs, and what does not."""
    working, broken = _working(case)
    if not working:
        return f"nothing to compare with: {broken}", working, broken
    return wrong(case, next(iter(working.values()))), working, broken


def _working(case: Case) -> tuple[dict[str, Function], dict[str, str]]:
    """The library functions that run at this size, and what the others answered."""
    working, broken = {}, {}
    inputs = case.inputs()
    for name, function in case.library.items():
        try:
            function(*inputs)
        except RuntimeError as answer:
            broken[name] = str(answer).splitlines()[0]
        else:
            working[name] = function
    return working, broken


def judge(case: Case, timings: dict[str, Timing], copy_rate: float) -> dict[str, Any]:
    """Rates, ratios and whether the targets are met."""
    ours = timings["triton"]
    library = {name: timing for name, timing in timings.items() if name != "triton"}
    row: dict[str, Any] = {
        "seconds": {name: timing.median_s for name, timing in timings.items()},
        "spread": {name: timing.spread for name, timing in timings.items()},
        "tflop_s": case.flops / ours.median_s / 1e12,
        "tb_s": case.bytes / ours.median_s / 1e12,
        "copy_ratio": case.bytes / ours.median_s / copy_rate,
    }
    if library:
        row["best_library"] = min(library, key=lambda name: library[name].median_s)
        row["ratio"] = library[row["best_library"]].median_s / ours.median_s
    targets = {"ratio": case.ratio, "copy_ratio": case.copy_ratio}
    row["targets"] = {name: target for name, target in targets.items() if target is not None}
    row["met"] = all(row.get(name, 0.0) >= target for name, target in row["targets"].items())
    return row


def fingerprint() -> str:
    """Of the kernels' source: a row measured with other kernels is measured again."""
    digest = hashlib.sha256()
    for path in sorted(KERNELS.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Of what else decides a time."""
    return {name: importlib.metadata.version(name) for name in ("torch", "triton")}


def kept(rows: list[dict[str, Any]], names: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of these cases that were measured with today's kernels and versions."""
    now = {"kernels": fingerprint(), "versions": versions()}
    wanted = set(names)
    return [r for r in rows if r["case"] in wanted and all(r[k] == v for k, v in now.items())]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts, and per kernel the worst and the median ratio to the best library kernel."""
    timed = [row for row in rows if "seconds" in row]
    ratios: dict[str, list[float]] = {}
    for row in timed:
        if "ratio" in row:
            ratios.setdefault(" ".join(row["case"].split()[:2]), []).append(row["ratio"])
    return {
        "cases": len(rows),
        "wrong": sum("wrong" in row for row in rows),
        "below_target": sum(not row["met"] for row in timed),
        "ratio": {
            name: {"worst": min(found), "median": statistics.median(found)}
            for name, found in ratios.items()
        },
    }


def line(row: dict[str, Any]) -> str:
    """One row for the terminal."""
    if "wrong" in row:
        return f"{row['case']:56} WRONG: {row['wrong']}"
    ratio = f"{row['ratio']:.2f}x {row['best_library']}" if "ratio" in row else "-"
    return (
        f"{row['case']:56} {row['seconds']['triton'] * 1e6:10.1f} us {row['tflop_s']:7.1f} TFLOP/s "
        f"{row['tb_s']:5.2f} TB/s  {ratio:18} {'' if row['met'] else 'below target'}"
    )
