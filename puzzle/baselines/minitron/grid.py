"""The grid: every cut in even steps whose size is within 5 % of the target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from puzzle.baselines.minitron.cut import HIDDEN_BY_HEADS, Cut
from puzzle.errors import PuzzleError

NEAR = 0.05
SPLITS = (8, 16, 32, 64)  # steps of a size; finer ones where no cut is near
SMALLEST = 0.25  # of the parent's hidden size, heads and layers; an FFN may have one step
HEAD_STEPS = 4
MULTIPLE = 8  # of a hidden size and an FFN where the parent's are large enough

SizeOf = Callable[[Cut], float]
Shallow = Callable[[int], tuple[int, ...]]


@dataclass(frozen=True)
class Grid:
    """Where to look: a parent of a family, and what may be cut."""

    whole: Cut
    family: str
    axes: Sequence[str]  # width, depth

    def cuts(self, steps: int) -> Iterator[Cut]:
        """Every cut that the family can hold, with the first layers for those that will stay."""
        whole, layers = self.whole, len(self.whole.layers)
        each, groups = whole.heads // whole.kv_heads, whole.kv_heads
        hidden, ffn, heads = [whole.hidden_size], [whole.intermediate_size], [(each, groups)]
        if "width" in self.axes:
            hidden = _parts(whole.hidden_size, steps, SMALLEST)
            ffn = _parts(whole.intermediate_size, 2 * steps, 0)  # it costs least to cut finely
            heads += [(fewer, groups) for fewer in _parts(each, HEAD_STEPS, SMALLEST)[1:]]
            heads += [(each, fewer) for fewer in _parts(groups, HEAD_STEPS, SMALLEST)[1:]]
        if self.family in HIDDEN_BY_HEADS:
            hidden = [whole.hidden_size * queries * keys // whole.heads for queries, keys in heads]
        fewest = max(2, math.ceil(SMALLEST * layers)) if "depth" in self.axes else layers
        for count in range(layers, min(layers, fewest) - 1, -1):
            for size, width, (queries, keys) in product(hidden, ffn, heads):
                cut = Cut(size, queries * keys, keys, width, whole.layers[:count])
                if cut.fits(self.family, whole):
                    yield cut


def near(grid: Grid, target: float, size_of: SizeOf, shallow: Shallow) -> dict[str, list[Cut]]:
    """Cuts of about the target's size by kind (`kind_of`), nearest to it first.

    Args:
        shallow: how many layers go -> which stay; asked of the numbers that occur alone.

    Raises:
        PuzzleError: there is none; says how near the nearest comes.
    """
    whole, distances = grid.whole, dict[Cut, float]()
    for steps in SPLITS:
        distances |= {cut: abs(size_of(cut) / target - 1) for cut in grid.cuts(steps)}
        kinds: dict[str, list[Cut]] = {}
        for cut in sorted(distances, key=lambda cut: distances[cut]):
            if distances[cut] <= NEAR:
                layers = shallow(len(whole.layers) - len(cut.layers))
                kinds.setdefault(kind_of(whole, cut), []).append(replace(cut, layers=layers))
        if kinds:
            return kinds
    nearest = min(distances, key=lambda cut: distances[cut])
    raise PuzzleError(
        f"no cut by {' and '.join(grid.axes)} comes within {NEAR:.0%} of the target; the nearest, "
        f"{nearest}, is {distances[nearest]:.0%} from it. Ask for another target or more axes"
    )


def kind_of(whole: Cut, cut: Cut) -> str:
    """What was cut: `width`, `depth`, `width and depth`, or `nothing`."""
    narrower = replace(cut, layers=whole.layers) != whole
    shorter = len(cut.layers) < len(whole.layers)
    parts = [name for name, is_so in (("width", narrower), ("depth", shorter)) if is_so]
    return " and ".join(parts) or "nothing"


def _parts(size: int, steps: int, smallest: float) -> list[int]:
    """Even parts of a size, the whole first, in multiples of 8 where it is large enough."""
    multiple = MULTIPLE if size >= MULTIPLE * steps else 1
    shares = [step / steps for step in range(steps - 1, 0, -1) if step / steps >= smallest]
    parts = [max(multiple, round(size * share / multiple) * multiple) for share in shares]
    return list(dict.fromkeys([size, *parts]))
