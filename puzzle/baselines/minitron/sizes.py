"""What a target is counted in: parameters, or throughput or memory by the budget's workload."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from puzzle.baselines.minitron.cut import Cut
from puzzle.budget import load_budget
from puzzle.config import Config
from puzzle.errors import PuzzleError
from puzzle.hardware.price import cost_source
from puzzle.hardware.throughput import reference_of
from puzzle.parent import Parent
from puzzle.shape import Shape
from puzzle.units import Relative

# what a target is of -> (its field in a prediction, its unit)
COUNTED = {
    "parameters": ("params", "params"),
    "throughput": ("tokens_per_s", "tok/s"),
    "memory": ("memory_bytes", "B"),
}


def size_in(parent: Parent, config: Config) -> Callable[[Cut], float]:
    """How large a cut is; throughput is that of its best batch, memory that of the parent's."""
    of = config.prune.of
    field, _ = COUNTED[of]
    budget, fields = load_budget(config.budget), parent.config.to_dict()
    if of == "memory":
        source = cost_source(config.costs, parent.shape, budget)
        batches = (reference_of(parent.shape, budget, source).batch,)
        workload = budget.workload.model_copy(update={"batches": batches})
        budget = budget.model_copy(update={"workload": workload})

    @cache
    def size(cut: Cut) -> float:
        shape = Shape.from_config(cut.fields(fields))
        if of == "parameters":
            return float(shape.model_params(shape.blocks))
        source = cost_source(config.costs, shape, budget)
        return float(getattr(reference_of(shape, budget, source), field))

    return size


def check_costs(parent: Parent, config: Config) -> None:
    """PuzzleError where the budget cannot be priced for the parent and for what is cut from it.

    A table of times knows one shape, and pruning by width makes others.
    """
    table = config.costs == "measured" or Path(config.costs).is_file()
    if table and "width" in config.prune.axes:
        raise PuzzleError(
            f"{config.costs} holds times of one hidden size and number of heads, which pruning "
            "by width changes; leave out costs, take roofline or public, or prune.axes=[depth]"
        )
    budget = load_budget(config.budget)
    reference_of(parent.shape, budget, cost_source(config.costs, parent.shape, budget))


def target_of(config: Config, whole: float) -> float:
    """The target in numbers; PuzzleError for one of another unit, or beyond the parent."""
    asked, of = config.prune.target, config.prune.of
    _, unit = COUNTED[of]
    if isinstance(asked, Relative):
        target = asked.factor * whole
    elif asked.unit != unit:
        raise PuzzleError(
            f"the target {asked} is no amount of {of}; give a multiple of the parent's like 0.75x, "
            f"or an amount in {unit}"
        )
    else:
        target = asked.value
    if not target > 0 or (target <= whole if of == "throughput" else target >= whole):
        side = "above" if of == "throughput" else "below"
        raise PuzzleError(f"the target {asked} of {of} is not {side} the parent's own {whole:,.0f}")
    return target
