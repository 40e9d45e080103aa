"""Early stop: the loss on text that is not trained on, checked now and then; the best is kept.

What was found stands beside the losses of the step it was found after, so a training that goes on
from a checkpoint knows it too.

>>> losses = [{"validation": 3.0}, {}, {"validation": 2.0}, {"validation": 2.5}, {}]
>>> best(losses), ended(losses, patience=1), ended(losses, patience=2)
(3, True, False)
>>> [step for step in range(1, 11) if due(step, steps=10, checks=4)]
[3, 5, 8, 10]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

CHECKED = "validation"
JUDGES = ("kl", "cosine", "lm")  # which loss is checked: the first there is

Losses = Sequence[Mapping[str, float]]  # of each step that is done


def due(step: int, steps: int, checks: int) -> bool:
    """Whether the loss is checked after this step: `checks` times, evenly, and after the last."""
    return step * checks // steps > (step - 1) * checks // steps


def judged(found: Mapping[str, float]) -> float:
    """The loss that counts."""
    return next(found[name] for name in JUDGES if name in found)


def best(losses: Losses) -> int | None:
    """The step after which the checked loss was least; None before the first check."""
    checked = _checked(losses)
    return min(checked, key=lambda step: checked[step], default=None)


def ended(losses: Losses, patience: int) -> bool:
    """Whether none of the last `patience` checks was the best."""
    checked = list(_checked(losses))
    return len(checked) > patience and best(losses) not in checked[-patience:]


def _checked(losses: Losses) -> dict[int, float]:
    """The steps after which the loss was checked, with what it was."""
    numbered = enumerate(losses, start=1)
    return {step: each[CHECKED] for step, each in numbered if CHECKED in each}
