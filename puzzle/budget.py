"""What the child must serve: the workload, the limits, the targets, and the budgets we ship."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PlainSerializer, PlainValidator, PositiveInt

from puzzle import units
from puzzle.errors import PuzzleError
from puzzle.hardware import devices
from puzzle.hardware.devices import Device, Dtype, Weights
from puzzle.strict_yaml import StrictModel, did_you_mean, load_yaml_model
from puzzle.units import Quantity, Relative

if TYPE_CHECKING:
    from puzzle.hardware.throughput import Prediction

SHIPPED = Path(__file__).parent / "budgets"


Amount = Quantity | Relative


def _reader(unit: str, example: str, *words: str) -> PlainValidator:
    """Reads an amount in `unit`, a multiple of the parent's, or one of `words`."""
    expected = f"an amount like {example}, or a multiple of the parent's like 0.5x"

    def read(value: object) -> Amount | str:
        if isinstance(value, Amount):
            return value
        if value in words:
            return str(value)
        try:
            amount = units.parse(str(value))
        except ValueError:
            raise ValueError(expected) from None
        if _absolute(amount, of_parent=1.0) <= 0:
            raise ValueError(f"{expected}, above 0")
        if isinstance(amount, Quantity) and amount.unit != unit:
            raise ValueError(expected)
        return amount

    return PlainValidator(read)


_AS_TEXT = PlainSerializer(str)
Memory = Annotated[Amount | Literal["auto"], _reader("B", "72 GiB", "auto"), _AS_TEXT]
Params = Annotated[Amount, _reader("params", "6.5 B params"), _AS_TEXT]
Seconds = Annotated[Amount, _reader("s", "20 ms"), _AS_TEXT]
Rate = Annotated[Amount, _reader("tok/s", "5500 tok/s"), _AS_TEXT]


class Workload(StrictModel):
    """Requests of one length, served in static batches: all start together and end together."""

    prompt_tokens: PositiveInt
    new_tokens: PositiveInt
    batches: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]  # the best that fits
    weights: Weights = "bfloat16"
    kv: Dtype = "bfloat16"

    @property
    def total_tokens(self) -> int:
        """Length of a finished request."""
        return self.prompt_tokens + self.new_tokens

    def check_positions(self, max_positions: int) -> None:
        """PuzzleError when a request is longer than what the parent has positions for."""
        if self.total_tokens > max_positions:
            raise PuzzleError(
                f"the workload needs {self.total_tokens} positions ({self.prompt_tokens} prompt + "
                f"{self.new_tokens} new tokens), the parent has {max_positions}; shorten the "
                "budget's workload or take a parent with a longer context"
            )


class LimitRows(StrictModel):
    """What the child may not exceed; absent means unlimited, but memory is the device's."""

    memory: Memory = "auto"
    params: Params | None = None
    ttft: Seconds | None = None
    tpot: Seconds | None = None


class TargetRows(StrictModel):
    """What the child must reach."""

    throughput: Rate | None = None


# name of a limit -> (its field here and in a prediction, its unit)
LIMITS = {
    "memory": ("memory_bytes", "B"),
    "params": ("params", "params"),
    "ttft": ("ttft_s", "s"),
    "tpot": ("tpot_s", "s"),
    "throughput": ("tokens_per_s", "tok/s"),
}


@dataclass(frozen=True)
class Limits:
    """A budget in absolute SI numbers; None is unlimited. tokens_per_s is a floor."""

    memory_bytes: int
    params: int | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    tokens_per_s: float | None = None

    def stated(self) -> dict[str, float]:
        """The limits there are, by name."""
        values = {name: getattr(self, field) for name, (field, _) in LIMITS.items()}
        return {name: value for name, value in values.items() if value is not None}

    def shares(self, prediction: Prediction) -> dict[str, float]:
        """How much of each limit a model uses; above 1 it breaks the limit."""
        reached = {name: getattr(prediction, LIMITS[name][0]) for name in self.stated()}
        return {
            name: limit / reached[name] if name == "throughput" else reached[name] / limit
            for name, limit in self.stated().items()
        }

    def allow(self, prediction: Prediction) -> bool:
        """Whether a model keeps every limit."""
        return max(self.shares(prediction).values()) <= 1


class Budget(StrictModel):
    """A device, what it serves, and what the child must keep to and reach."""

    name: str = ""
    description: str = ""
    hardware: str
    gpus: Literal[1, 2, 4, 8] = 1  # every layer is split over them; batches and bytes are of one
    workload: Workload
    limits: LimitRows = LimitRows()
    targets: TargetRows = TargetRows()

    @property
    def device(self) -> Device:
        """The device that serves the child."""
        return devices.device(self.hardware)

    def resolve(self, parent: Prediction) -> Limits:
        """The limits in numbers, multiples taken of what the parent itself is predicted to do."""
        limits, memory = self.limits, self.limits.memory
        if memory == "auto":
            memory = Quantity(self.device.usable_bytes, "B")
        params = _maybe(limits.params, parent.params)
        return Limits(
            memory_bytes=min(int(_absolute(memory, parent.memory_bytes)), self._held_bytes(memory)),
            params=None if params is None else int(params),
            ttft_s=_maybe(limits.ttft, parent.ttft_s),
            tpot_s=_maybe(limits.tpot, parent.tpot_s),
            tokens_per_s=_maybe(self.targets.throughput, parent.tokens_per_s),
        )

    def _held_bytes(self, memory: Amount) -> int:
        """What one device holds: an amount in bytes may ask for all of it, not for more."""
        if isinstance(memory, Relative):
            return self.device.usable_bytes
        if memory.value > self.device.memory_bytes:
            raise PuzzleError(
                f"budget {self.name}: memory {memory} is more than the "
                f"{units.show(self.device.memory_bytes, 'B')} of {self.hardware}; lower it, or "
                "leave it out for all that may be filled"
            )
        return self.device.memory_bytes


def _absolute(amount: Amount, of_parent: float) -> float:
    return amount.value if isinstance(amount, Quantity) else amount.factor * of_parent


def _maybe(amount: Amount | None, of_parent: float) -> float | None:
    return None if amount is None else _absolute(amount, of_parent)


def budget_names() -> list[str]:
    """The budgets that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_budget(name_or_path: str | Path) -> Budget:
    """Read a shipped budget by its name, or a YAML file by its path."""
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        if str(name_or_path) not in budget_names():
            raise PuzzleError(
                f"budget {str(name_or_path)!r} is unknown; "
                f"{did_you_mean(str(name_or_path), budget_names())}"
            )
        path = SHIPPED / f"{name_or_path}.yaml"
    budget = load_yaml_model(path, Budget)
    return budget if budget.name else budget.model_copy(update={"name": path.stem})
