"""What the child must serve: the workload, the limits, the targets, and the budgets we ship."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import PlainSerializer, PlainValidator, PositiveInt

from puzzle import units
from puzzle.errors import PuzzleError
from puzzle.hardware import devices
from puzzle.hardware.devices import Device, Dtype
from puzzle.strict_yaml import StrictModel, did_you_mean, load_yaml_model
from puzzle.units import Quantity, Relative

if TYPE_CHECKING:
    from puzzle.hardware.throughput import Prediction

SHIPPED = Path(__file__).parent / "budgets"


def _amount(unit: str, example: str, *words: str) -> Any:
    """A pydantic type: an amount in `unit`, a multiple of the parent's, or one of `words`."""

    def read(value: object) -> Quantity | Relative | str:
        if isinstance(value, Quantity | Relative) or value in words:
            return value  # type: ignore[return-value]
        amount = units.parse(value) if isinstance(value, str) else None
        if amount is None or (isinstance(amount, Quantity) and amount.unit != unit):
            raise ValueError(f"an amount like {example}, or a multiple of the parent's like 0.5x")
        return amount

    return Annotated[Quantity | Relative | str, PlainValidator(read), PlainSerializer(str)]


Memory = _amount("B", "72 GiB", "auto")
Params = _amount("params", "6.5 B params")
Seconds = _amount("s", "20 ms")
Rate = _amount("tok/s", "5500 tok/s")


class Workload(StrictModel):
    """Requests of one length, served in static batches: all start together and end together."""

    prompt_tokens: PositiveInt
    new_tokens: PositiveInt
    batches: tuple[PositiveInt, ...]  # the best that fits is used
    weights: Dtype = "bfloat16"
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


@dataclass(frozen=True)
class Limits:
    """A budget in absolute SI numbers; None is unlimited. tokens_per_s is a floor."""

    memory_bytes: int
    params: int | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    tokens_per_s: float | None = None


class Budget(StrictModel):
    """A device, what it serves, and what the child must keep to and reach."""

    name: str = ""
    description: str = ""
    hardware: str
    gpus: Literal[1] = 1  # the cost of talking between GPUs is not modelled
    workload: Workload
    limits: LimitRows = LimitRows()
    targets: TargetRows = TargetRows()

    @property
    def device(self) -> Device:
        """The device that serves the child."""
        return devices.device(self.hardware)

    def resolve(self, parent: Prediction) -> Limits:
        """The limits in numbers, multiples taken of what the parent itself is predicted to do."""
        memory = self.limits.memory
        if memory == "auto":
            memory = Quantity(self.device.usable_bytes, "B")
        params = _absolute(self.limits.params, parent.params)
        return Limits(
            memory_bytes=int(_absolute(memory, parent.memory_bytes)),
            params=None if params is None else int(params),
            ttft_s=_absolute(self.limits.ttft, parent.ttft_s),
            tpot_s=_absolute(self.limits.tpot, parent.tpot_s),
            tokens_per_s=_absolute(self.targets.throughput, parent.tokens_per_s),
        )


def _absolute(amount: Quantity | Relative | None, of_parent: float) -> float | None:
    match amount:
        case Quantity(value=value):
            return value
        case Relative(factor=factor):
            return factor * of_parent
    return None


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
