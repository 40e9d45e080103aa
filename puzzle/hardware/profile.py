"""`puzzle profile`: time every half of a space on this machine into a table that prices searches.

A table is a source of costs (`tables.py`): `puzzle estimate --costs TABLE`. Timing can be stopped
and started again; nothing that the table holds is lost.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puzzle.blocks.variant import Block
from puzzle.budget import Workload
from puzzle.config import Space
from puzzle.errors import PuzzleError
from puzzle.export.targets import Target, served
from puzzle.hardware.devices import Device
from puzzle.hardware.here import here, processor
from puzzle.hardware.kernels import Roofline
from puzzle.hardware.modeled import Modeled
from puzzle.hardware.published import config_of, model
from puzzle.hardware.source import Step, Timed, halves
from puzzle.hardware.tables import OUTSIDE, Timing, read_table, shape_key, write_table
from puzzle.progress import track
from puzzle.space import layer_blocks

if TYPE_CHECKING:
    from puzzle.hardware.measure import Case

SETUP_S, SAMPLES, LEAST_S = 0.1, 9, 0.3  # what one timing takes, for the plan
TURNS = {"cpu": 3, "cuda": 1}  # of all cases: a processor's clock drifts within minutes
STEADY = 0.1  # spread of a timing that is believed at once
AGAIN = 4  # times that others are taken anew
_Key = tuple[str, str, int, int, str]


@dataclass(frozen=True)
class Profile:
    """What to time of a model, in which types, on which device, and into which file."""

    name: str
    workload: Workload  # its batches are timed, at its prompt's and its full length
    table: Path
    space: Space = field(default_factory=Space)
    target: Target = "hf"  # whose form of the blocks is timed

    def cases(self) -> list[Case]:
        """Every half, phase, batch and length; outside the layers first."""
        from puzzle.hardware.measure import Case

        _, blocks = model(self.name)
        family = config_of(self.name)["model_type"]
        space = layer_blocks(blocks, self.space, self.target)
        held = (served(family, block, self.target) for layer in space for block in layer)
        parts = dict.fromkeys(part for block in held for part in halves(block))
        work = self.workload
        lengths = {
            "prefill": [work.prompt_tokens],
            "decode": sorted({work.prompt_tokens + 1, work.total_tokens}),
        }
        return [
            Case(half, phase, batch, length, kernels)
            for half in (None, *parts)
            for kernels in (self.columns() if half else ["torch"])
            for phase, sizes in lengths.items()
            for length in sizes
            for batch in work.batches
        ]

    def columns(self) -> list[str]:
        """Whose kernels to time: torch's, and on a GPU ours where they know the family."""
        shape, family = model(self.name)[0], config_of(self.name)["model_type"]
        plain = family == "llama" and not (shape.qkv_bias or shape.mlp_bias)
        return ["torch", "triton"] if plain and _torch_device() == "cuda" else ["torch"]

    def missing(self) -> list[Case]:
        """The cases that the table does not hold yet."""
        held = self._held()
        return [case for case in self.cases() if _key(case) not in held]

    def unsteady(self) -> list[Case]:
        """The cases whose timings vary by more than STEADY: something else ran meanwhile."""
        held = self._held()
        found = [(case, held.get(_key(case))) for case in self.cases()]
        return [case for case, timing in found if timing and timing.spread > STEADY]

    def _held(self) -> dict[_Key, Timing]:
        """What the table holds of this shape, device and types."""
        wanted = self._timing(self.cases()[0], 0.0, 0.0)
        timings = read_table(self.table) if self.table.exists() else []
        return {_key_of(t): t for t in timings if _setting(t) == _setting(wanted)}

    def plan(self) -> list[tuple[str, int, float]]:
        """Per half what is missing: its name, how many timings, and about how many seconds."""
        source = Modeled(Roofline(_device()), model(self.name)[0], self.workload)
        rows: dict[str, tuple[int, float]] = {}
        missing = set(self.missing())
        for case in self.cases() if missing else ():
            if turns := TURNS[_torch_device()] - (case not in missing):
                count, seconds = rows.get(_name(case.half), (0, 0.0))
                each = max(LEAST_S, SAMPLES * _expected(source, case, self.workload).seconds)
                each = (SETUP_S + each) * turns
                rows[_name(case.half)] = (count + (case in missing), seconds + each)
        return [(name, count, seconds) for name, (count, seconds) in rows.items()]

    def run(self) -> int:
        """Time what is missing, writing after every one; how many timings that were.

        On a processor further turns take all cases, those that were there too, so that a slow
        minute does not price the halves it met above the others. Unsteady timings, earlier ones
        too, are then taken anew a few times. The fastest stay, for what else runs on a machine only
        ever adds to them. A pass that a GPU's memory does not hold is left out with a warning.
        """
        missing = self.missing()
        self._time(missing)
        for _ in range(TURNS[_torch_device()] - 1 if missing else 0):
            self._time(self.cases())
        for _ in range(AGAIN):
            self._time(self.unsteady())
        return len(missing) - len(self.missing())

    def _time(self, cases: Sequence[Case]) -> None:
        self.table.parent.mkdir(parents=True, exist_ok=True)
        known = read_table(self.table) if self.table.exists() else []
        places = {(_setting(timing), _key_of(timing)): i for i, timing in enumerate(known)}
        for timing in track(self._timed(cases), "profile", len(cases)):
            place = places.get((_setting(timing), _key_of(timing)))
            if place is None:
                known.append(timing)
            else:
                known[place] = _better(known[place], timing)
            write_table(self.table, known)

    def _timed(self, cases: Sequence[Case]) -> Iterator[Timing]:
        import torch

        from puzzle.hardware.measure import Bench

        if self.workload.weights not in ("float32", "bfloat16") or (
            self.workload.kv != self.workload.weights
        ):
            raise PuzzleError(
                f"weights {self.workload.weights} with cache {self.workload.kv} cannot be timed: "
                "torch's layers run float32/float32 or bfloat16/bfloat16"
            )
        dtype = getattr(torch, self.workload.weights)
        bench = Bench(transformers_config(self.name), dtype, _torch_device())
        for case in cases:
            try:
                found = bench.time(case)
            except torch.OutOfMemoryError as error:
                warnings.warn(
                    f"{_said(case)} is left out: {error}".partition("\n")[0], stacklevel=2
                )
                continue
            yield self._timing(case, *found)

    def _timing(self, case: Case, seconds: float, spread: float) -> Timing:
        shape, work = shape_key(model(self.name)[0]), self.workload
        half, phase, batch, length, kernels = _key(case)
        return Timing(
            *(device_name(), shape, half, phase, batch, length, work.weights, work.kv),
            seconds=round(seconds, 9),
            spread=round(spread, 4),
            kernels=kernels,
        )


def device_name() -> str:
    """The GPU's name, or the processor's with torch's threads."""
    import torch

    if _torch_device() == "cuda":
        return torch.cuda.get_device_name()
    return f"{processor()}, {torch.get_num_threads()} threads"


def _torch_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _device() -> Device:
    """A device to plan with: this processor; a GPU is not slower."""
    return here()


def transformers_config(name: str) -> Any:
    """The transformers configuration of a model known by its sizes."""
    from transformers import AutoConfig

    fields = config_of(name)
    if "block_configs" in fields:
        raise PuzzleError(f"{name} is a child; profile its parent, whose table prices both")
    return AutoConfig.for_model(fields["model_type"], **_without(fields, "model_type", "source"))


def _without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in names}


def _better(known: Timing, timing: Timing) -> Timing:
    """The faster of two, as steady as the steadier: one that was seen steady is believed."""
    faster = min(known, timing, key=lambda each: each.seconds)
    return replace(faster, spread=min(known.spread, timing.spread))


def _said(case: Case) -> str:
    return f"{case.phase} of {_name(case.half)} ({case.batch} x {case.length}, {case.kernels})"


def _key(case: Case) -> _Key:
    return _name(case.half), case.phase, case.batch, case.length, case.kernels


def _key_of(timing: Timing) -> _Key:
    return timing.half, timing.phase, timing.batch, timing.length, timing.kernels


def _setting(timing: Timing) -> tuple[str, str, str, str]:
    """What all timings of one profile have in common."""
    return timing.device, timing.shape, timing.weights, timing.kv


def _name(half: Block | None) -> str:
    return OUTSIDE if half is None else str(half)


def _expected(source: Modeled, case: Case, work: Workload) -> Timed:
    reading = case.phase == "prefill"
    step = Step(
        sequences=0 if reading else case.batch,
        prompts=case.batch if reading else 0,
        prompt_tokens=case.length if reading else work.prompt_tokens,
        new_tokens=work.new_tokens,
    )
    return source.outside(step) if case.half is None else source.half(case.half, step)


def batches_of(text: str) -> Sequence[int]:
    """Read `1,4,16`."""
    try:
        batches = [int(word) for word in text.split(",")]
    except ValueError:
        batches = []
    if not batches or min(batches) < 1:
        raise PuzzleError(f"batches {text!r} are not whole numbers above 0, like 1,4,16")
    return batches
