"""Predicted throughput of whole models against published figures, or of children on this CPU.

    python benchmarks/throughput.py                 # against data/throughput_published.csv
    python benchmarks/throughput.py --rows my.csv   # against other rows with the same columns
    python benchmarks/throughput.py --cpu           # against generation on this machine

The published rows (TensorRT-LLM 0.17; the file names its source on every row) are totals over all
GPUs of runs with every request queued at once. Five constants of devices and engine were fitted
to those of dense models (throughput_fit.py); the errors of rows that the fit did not see are
reported beside. Nothing at all is fitted to mixtures of experts.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import record

from puzzle.blocks.variant import Block
from puzzle.budget import Workload
from puzzle.errors import PuzzleError
from puzzle.hardware.devices import Dtype, Weights, device
from puzzle.hardware.kernels import Roofline
from puzzle.hardware.modeled import Modeled
from puzzle.hardware.published import model
from puzzle.hardware.serving import Model, Served
from puzzle.shape import Shape

ROWS = Path(__file__).parent / "data" / "throughput_published.csv"
DEVICES = {
    "H100-SXM-80GB": "h100-sxm",
    "H200-SXM-141GB": "h200-sxm",
    "A100-SXM-80GB": "a100-sxm",
    "L40S": "l40s",
    "B200": "b200",
}
MODELS = {
    "Llama-3.1-8B": "llama-3.1-8b",
    "Llama-3.1-70B": "llama-3.1-70b",
    "Llama-3.3-70B": "llama-3.1-70b",
    "Llama-3.1-405B": "llama-3.1-405b",
    "Mistral-7B": "mistral-7b",
    "Mixtral-8x7B": "mixtral-8x7b",
}
WEIGHTS: dict[str, Weights] = {
    "fp8": "float8",
    "fp16": "bfloat16",
    "bf16": "bfloat16",
    "int4": "int4",
}
CACHES: dict[str, Dtype] = {"fp8": "float8", "fp16": "bfloat16", "bf16": "bfloat16"}
CPU_RESULTS = record.RESULTS / "throughput_cpu.json"
ROOFLINE_DEVICES = ("h100-sxm", "h200-sxm", "a100-sxm")


@dataclass(frozen=True)
class Row:
    """One published figure that we can predict."""

    model: str
    device: str
    gpus: int
    workload: Workload
    tokens_per_s: float  # per GPU

    @property
    def lengths(self) -> tuple[int, int]:
        """Prompt and new tokens."""
        return self.workload.prompt_tokens, self.workload.new_tokens


Machine = Callable[[str], Roofline]  # a device's name -> its kernels


def machine(name: str) -> Roofline:
    """The kernels of a device as shipped."""
    return Roofline(device(name))


@cache
def sizes(name: str) -> tuple[Shape, tuple[Block, ...]]:
    """Shape and blocks of a shipped model."""
    return model(name)


def read(path: Path) -> tuple[list[Row], Counter[str]]:
    """The rows we can predict, and how many of the others for which reason."""
    rows, left_out = [], Counter[str]()
    with path.open(newline="") as file:
        for raw in csv.DictReader(file):
            reason = _why_not(raw)
            if reason:
                left_out[reason] += 1
            else:
                rows.append(_row(raw))
    return rows, left_out


def _why_not(raw: Mapping[str, str]) -> str:
    if raw["metric"] != "output_tok_s_total":
        return f"metric {raw['metric']}"
    for column, known in (
        ("model", MODELS),
        ("gpu", DEVICES),
        ("weights_dtype", WEIGHTS),
        ("kv_dtype", CACHES),
    ):
        if raw[column] not in known:
            return f"{column} {raw[column]}"
    return ""


def _row(raw: Mapping[str, str]) -> Row:
    gpus = int(raw["n_gpu_tp"])
    workload = Workload(
        prompt_tokens=int(raw["isl"]),
        new_tokens=int(raw["osl"]),
        batches=(1,),
        weights=WEIGHTS[raw["weights_dtype"]],
        kv=CACHES[raw["kv_dtype"]],
    )
    name, where = MODELS[raw["model"]], DEVICES[raw["gpu"]]
    return Row(name, where, gpus, workload, float(raw["value"]) / gpus)


def dense(rows: Iterable[Row]) -> list[Row]:
    """The rows that constants are fitted to: those of models without experts."""
    return [row for row in rows if not sizes(row.model)[0].experts]


def predict(row: Row, kernels: Machine = machine) -> Served:
    """Our prediction of a row."""
    shape, blocks = sizes(row.model)
    found = kernels(row.device)
    source = Modeled(found, shape, row.workload, row.gpus)
    return Model.of(source, blocks, found.device).saturated()


def errors(rows: Sequence[Row], kernels: Machine = machine) -> np.ndarray[Any, Any]:
    """Relative errors with their sign: predicted / published - 1."""
    return np.array([predict(row, kernels).tokens_per_s / row.tokens_per_s - 1 for row in rows])


def figures(rows: Sequence[Row], signed: np.ndarray[Any, Any]) -> dict[str, float]:
    """Number of points, absolute relative errors, and the rank correlation."""
    off = np.abs(signed)
    published = np.array([row.tokens_per_s for row in rows])
    return {
        "points": len(rows),
        "median_ape": round(float(np.median(off)), 4),
        "mean_ape": round(float(off.mean()), 4),
        "p90_ape": round(float(np.quantile(off, 0.9)), 4),
        "mean_error": round(float(signed.mean()), 4),
        "spearman": round(spearman((1 + signed) * published, published), 4),
    }


def spearman(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Rank correlation; ties are broken by order, which measured times do not have."""
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def grouped(
    rows: Sequence[Row], signed: np.ndarray[Any, Any], key: Callable[[Row], str]
) -> dict[str, dict[str, float]]:
    """Figures by group."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        members[key(row)].append(index)
    return {
        name: figures([rows[i] for i in found], signed[found])
        for name, found in sorted(members.items())
    }


def published(path: Path) -> None:
    """Predict every row, print and write the errors."""
    from throughput_fit import cross_validated

    rows, left_out = read(path)
    if not rows:
        raise PuzzleError(f"{path} has no row that can be predicted: {dict(left_out)}")
    signed = errors(rows)
    alone = [i for i, row in enumerate(rows) if row.gpus == 1 and row.device in ROOFLINE_DEVICES]
    summary: dict[str, Any] = figures(rows, signed)
    summary["roofline_tp1_mean_ape"] = round(float(np.abs(signed[alone]).mean()), 4)
    summary["by_device"] = grouped(rows, signed, lambda row: row.device)
    summary["by_device_and_gpus"] = grouped(rows, signed, lambda row: f"{row.device} x{row.gpus}")
    summary["by_model"] = grouped(rows, signed, lambda row: row.model)
    summary["left_out"] = dict(left_out)
    if path == ROWS:
        summary["cross_validated"] = cross_validated(dense(rows))
    _report(summary)
    if path == ROWS:
        print("wrote", record.write("throughput", _with_cpu(summary), list(_rows(rows, signed))))


def _rows(rows: Iterable[Row], signed: np.ndarray[Any, Any]) -> Iterable[dict[str, Any]]:
    for row, error in zip(rows, signed):
        yield {
            "model": row.model,
            "device": row.device,
            "gpus": row.gpus,
            "prompt_tokens": row.lengths[0],
            "new_tokens": row.lengths[1],
            "published_tok_s_per_gpu": row.tokens_per_s,
            "error": round(float(error), 4),
        }


def _with_cpu(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary with the figures of `--cpu`, where that has been run."""
    if not CPU_RESULTS.exists():
        return summary
    return summary | json.loads(CPU_RESULTS.read_text())["summary"]


def _report(summary: Mapping[str, Any], indent: str = "") -> None:
    for name, value in summary.items():
        if isinstance(value, Mapping):
            print(f"{indent}{name}")
            _report(value, indent + "  ")
        else:
            print(f"{indent}{name}: {value}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=Path, default=ROWS, help="CSV of published figures")
    parser.add_argument("--cpu", action="store_true", help="measure children on this machine")
    options = parser.parse_args()
    if options.cpu:
        from throughput_cpu import measured

        measured()
        if not (record.RESULTS / "throughput.json").exists():
            return
    published(options.rows)


if __name__ == "__main__":
    main()
