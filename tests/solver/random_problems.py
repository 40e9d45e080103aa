"""Small seeded problems whose every answer can be listed, with every kind of rule."""

from __future__ import annotations

import numpy as np

from puzzle.solver import Problem, Rules, Span, Unlike


def random_problem(seed: int) -> Problem:
    """A problem of 1 to 6 groups with 1 to 5 options; coarse numbers, so that ties happen."""
    rng = np.random.default_rng(seed)
    groups, rows = int(rng.integers(1, 7)), int(rng.integers(0, 5))
    sizes = rng.integers(1, 6, groups)
    coarse = bool(rng.integers(2))
    loss = [rng.integers(-4, 9, n).astype(float) if coarse else rng.normal(1, 2, n) for n in sizes]
    top = int(10 ** rng.integers(1, 12))
    cost = {f"c{r}": [rng.integers(0, top, n) for n in sizes] for r in range(rows)}
    totals = {name: (sum(map(min, c)), sum(map(max, c))) for name, c in cost.items()}

    def between(name: str, low: float, high: float) -> int:
        least, most = totals[name]
        return max(0, int(least + (most - least) * rng.uniform(low, high)))

    limit = {name: between(name, 0.1, 0.9) for name in cost}
    at_least = {name: between(name, -0.2, 0.4) for name in cost if rng.random() < 0.25}
    names = [[f"n{rng.integers(4)}" for _ in range(n)] for n in sizes]
    return Problem(loss, cost, limit, at_least, names, _rules(rng, sizes, cost))


def _rules(rng: np.random.Generator, sizes: np.ndarray, cost: dict) -> Rules:
    groups = len(sizes)

    def pair() -> tuple[int, int]:
        group = int(rng.integers(groups))
        return group, int(rng.integers(sizes[group]))

    spans = []
    for _ in range(int(rng.integers(0, 4)) if rng.random() < 0.4 else 0):
        start = int(rng.integers(groups))
        stop = int(rng.integers(start + 1, groups + 1))
        price = {k: int(sum(rng.choice(c[g]) for g in range(start, stop))) for k, c in cost.items()}
        spans.append(Span(start, stop, float(rng.integers(-2, 6)), price))
    earlier = tuple(int(rng.integers(n)) for n in sizes)
    fixed = pair()
    return Rules(
        forbidden=(pair(),) if rng.random() < 0.2 else (),
        fixed=(fixed,) if rng.random() < 0.2 else (),
        spans=tuple(spans),
        unlike=(Unlike(earlier, int(rng.integers(groups))),) if rng.random() < 0.3 else (),
        max_names=int(rng.integers(1, 4)) if rng.random() < 0.25 else None,
    )
