"""Measured tables of halves as a source: what `puzzle profile` wrote, or your own.

A table is a CSV file, one timing a line:

    device, shape, half, phase, batch, length, weights, kv, seconds, spread, kernels

`half` is a block whose other half is noop (`gqa2+noop`, `noop+ffn768`), or `outside`; `phase` is
prefill or decode; `length` is the prompt or the context a new token sees; `seconds` is the median
of one pass, `spread` the middle half's width over it; `kernels` names the column (torch, triton,
library). Where several columns time the same pass the fastest counts, as an engine would choose.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from puzzle.blocks.variant import Block
from puzzle.budget import Workload
from puzzle.errors import PuzzleError
from puzzle.hardware.devices import device
from puzzle.hardware.interpolate import lookup
from puzzle.hardware.kernels import Roofline
from puzzle.hardware.modeled import Modeled
from puzzle.hardware.public import Public
from puzzle.hardware.source import EXTRAPOLATED, Source, Step, Timed
from puzzle.shape import Shape

OUTSIDE = "outside"
Grid = dict[float, dict[float, float]]  # length -> batch -> seconds


@dataclass(frozen=True)
class Timing:
    """One line of a table."""

    device: str
    shape: str
    half: str
    phase: str
    batch: int
    length: int
    weights: str
    kv: str
    seconds: float
    spread: float
    kernels: str


_FIELDS = fields(Timing)
_READERS: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float}
COLUMNS = [column.name for column in _FIELDS]


def shape_key(shape: Shape) -> str:
    """What decides a half's time beside its variant, as one word for the `shape` column.

    >>> from puzzle.hardware.published import model
    >>> shape_key(model("llama-3.1-8b")[0])
    '4096-32x128-v128256'
    >>> shape_key(model("mixtral-8x7b")[0])  # so many experts a token, of so many channels
    '4096-32x128-v32000-e2x14336'
    """
    marks = "".join(
        mark
        for mark, held in (("q", shape.qk_norm), ("b", shape.qkv_bias), ("u", not shape.gated))
        if held
    )
    sizes = f"{shape.hidden_size}-{shape.heads}x{shape.head_dim}-v{shape.vocab_size}"
    experts = f"e{shape.experts_per_token}x{shape.expert_size}" if shape.experts else ""
    return "-".join(filter(None, (sizes, experts, marks)))


def read_table(path: Path) -> list[Timing]:
    """The lines of a table; PuzzleError names the line that does not read."""
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise PuzzleError(f"{path} has no column {missing[0]}; a table has {COLUMNS}")
            return [_timing(path, reader.line_num, row) for row in reader]
    except OSError as error:
        raise PuzzleError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise PuzzleError(f"{path} is no table: it is not text ({error.reason})") from None


def write_table(path: Path, timings: Iterable[Timing]) -> None:
    """Write lines, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(map(asdict, timings))
    temporary.replace(path)


@dataclass(frozen=True)
class Measured:
    """Seconds from a table; what it does not hold comes from `rest`."""

    name: str
    grids: Mapping[tuple[str, str], Grid]  # by half and phase
    rest: Modeled

    @classmethod
    def of(cls, path: Path, rest: Modeled) -> Measured:
        """The timings of this shape, weights and cache; PuzzleError when there are none."""
        timings, key = read_table(path), shape_key(rest.shape)
        wanted = (key, rest.workload.weights, rest.workload.kv)
        found = [t for t in timings if (t.shape, t.weights, t.kv) == wanted]
        devices = sorted({timing.device for timing in found})
        if len(devices) > 1:
            raise PuzzleError(f"{path} mixes {' and '.join(devices)}; keep a table a device")
        if not found:
            held = sorted({f"{t.shape} {t.weights} {t.kv}" for t in timings})
            raise PuzzleError(
                f"{path} times {', '.join(held) or 'nothing'}, not {' '.join(wanted)}; "
                "run puzzle profile for this model and workload"
            )
        return cls(path.name, _grids(found), rest)

    @property
    def shape(self) -> Shape:
        """The parent's."""
        return self.rest.shape

    @property
    def workload(self) -> Workload:
        """What is served."""
        return self.rest.workload

    @property
    def gpus(self) -> int:
        """Tables are of one GPU."""
        return self.rest.gpus

    def half(self, half: Block, step: Step) -> Timed:
        """Reading and decoding as separate passes, which is how they were timed."""
        window = half.attention.sees
        return self._passes(str(half), step, window) or self.rest.half(half, step)

    def outside(self, step: Step) -> Timed:
        """The same for embedding, norm and head."""
        return self._passes(OUTSIDE, step, None) or self.rest.outside(step)

    def _passes(self, half: str, step: Step, window: int | None) -> Timed | None:
        asked = [
            ("prefill", step.prompts, float(step.prompt_tokens)),
            ("decode", step.sequences, max(1.0, step.context(window))),
        ]
        found = Timed()
        for phase, batch, length in asked:
            if batch and (half, phase) not in self.grids:
                return None
            if batch:
                seconds, beyond = lookup(self.grids[half, phase], length, batch)
                source = (EXTRAPOLATED if beyond else "") + self.name
                found += Timed(seconds, frozenset({source}))
        return found


def _grids(timings: Iterable[Timing]) -> dict[tuple[str, str], Grid]:
    grids: dict[tuple[str, str], Grid] = {}
    for timing in timings:
        grid = grids.setdefault((timing.half, timing.phase), {})
        by_batch = grid.setdefault(float(timing.length), {})
        known = by_batch.get(float(timing.batch), timing.seconds)
        by_batch[float(timing.batch)] = min(known, timing.seconds)
    return grids


def _timing(path: Path, line: int, row: Mapping[str, Any]) -> Timing:
    try:
        values = {column.name: _READERS[str(column.type)](row[column.name]) for column in _FIELDS}
    except (TypeError, ValueError) as error:
        raise PuzzleError(f"{path} line {line}: {error}") from None
    for name in ("seconds", "batch", "length"):
        if not 0 < values[name] < math.inf:
            raise PuzzleError(f"{path} line {line}: {name} is {values[name]}, expected above 0")
    return Timing(**values)


def open_source(
    costs: str, shape: Shape, workload: Workload, hardware: str, gpus: int = 1
) -> Source:
    """The source of that name: `roofline`, `public`, `measured` (shipped), or a table's path.

    Raises:
        PuzzleError: an unknown device, tables that are not there or not of this model.
    """
    modeled = Modeled(Roofline(device(hardware)), shape, workload, gpus)
    if costs == "roofline":
        return modeled
    if costs == "public":
        return Modeled(Public.of(hardware), shape, workload, gpus)
    path = _shipped(hardware) if costs == "measured" else Path(costs)
    if not path.is_file():
        raise PuzzleError(
            f"costs {costs!r} is not a file; take roofline, public, measured, or a table's path"
        )
    if gpus > 1:
        raise PuzzleError(f"{costs} was measured on one GPU; take --costs roofline for {gpus}")
    return Measured.of(path, modeled)


def _shipped(hardware: str) -> Path:
    """The table of a device that comes with the package."""
    tables = {path.stem: path for path in (Path(__file__).parent / "measured").glob("*.csv")}
    if hardware not in tables:
        raise PuzzleError(
            f"tables are shipped of {', '.join(sorted(tables))}, not of {hardware}; run puzzle "
            "profile there and give its table, or take roofline or public"
        )
    return tables[hardware]
