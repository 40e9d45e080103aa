"""Write a results file: every benchmark's summary and rows, with machine, versions and commit."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

RESULTS = Path(__file__).parent / "results"
Bench = TypeVar("Bench")
Step = Callable[[Bench], tuple[dict[str, float], list[dict[str, Any]]]]  # its figures and rows
PACKAGES = ("torch", "transformers", "triton", "numpy", "ortools", "pulp", "highspy", "mip")


def write(name: str, summary: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """Write `results/<name>.json` and return its path.

    `summary` holds the figures the README quotes, `rows` what they were computed from. Times are
    seconds, sizes bytes, relative errors fractions.
    """
    record = {
        "summary": summary,
        "rows": rows,
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "command": " ".join(["python", *map(_portable, sys.argv)]),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(temporary, path)
    return path


def update(name: str, part: tuple[str, str], summary: dict[str, Any], rows: list[Any]) -> Path:
    """Write one part of a results file anew; the others stay, each with the commit it is of.

    Args:
        part: what its rows are told by, like `("run", "demo")`.
    """
    key, value = part
    path = RESULTS / f"{name}.json"
    own = [{key: value, **row} for row in ({"kind": "commit", "commit": commit()}, *rows)]
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f".{name}.lock").open("w") as lock:  # of several processes one at a time
        fcntl.flock(lock, fcntl.LOCK_EX)
        earlier = json.loads(path.read_text()) if path.exists() else {"summary": {}, "rows": []}
        others = [row for row in earlier["rows"] if row[key] != value]
        return write(name, earlier["summary"] | summary, [*others, *own])


def take_steps(name: str, steps: Mapping[str, Step[Bench]], bench: Bench) -> None:
    """Take the steps named on the command line after WORK, or all; each is written when done."""
    for step in sys.argv[2:] or steps:
        found, rows = steps[step](bench)
        summary = {key: round(value, 4) for key, value in found.items()}
        print(f"== {step}: {summary}", flush=True)
        update(name, ("step", step), summary, rows)


def _portable(word: str) -> str:
    """A word of the command line, `name=path` too; of an absolute path only the last part."""
    name, equals, path = word.rpartition("=")
    return f"{name}{equals}{Path(path).name}" if Path(path).is_absolute() else word


def machine() -> dict[str, Any]:
    """Processor, cores, memory and, where there is one, GPU of this machine."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found = {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.system(),
    }
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name()
    return found


def versions() -> dict[str, str]:
    """Python and the packages whose version can change a measurement."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit measured, with `+` where the tree had uncommitted changes, results apart."""
    root = Path(__file__).parent.parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=False
        ).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (
        "+" if git("status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results") else ""
    )
