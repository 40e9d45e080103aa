"""What a target is counted in: parameters, or throughput or memory by the budget's workload."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

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
    """How large a cut is; throughput and memory are those of the batch of highest throughput."""
    of = config.prune.of
    field, _ = COUNTED[of]
    budget, fields = load_budget(config.budget), parent.config.to_dict()

    @cache
    def size(cut: Cut) -> float:
        shape = Shape.from_config(cut.fields(fields))
        if of == "parameters":
            return float(shape.model_params(shape.blocks))
        source = cost_source(config.costs, shape, budget)
        return float(getattr(reference_of(shape, budget, source), field))

    return size


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
    if not target > 0 or (target < whole) == (of == "throughput"):
        side = "above" if of == "throughput" else "below"
        raise PuzzleError(f"the target {asked} of {of} is not {side} the parent's own {whole:,.0f}")
    return target
