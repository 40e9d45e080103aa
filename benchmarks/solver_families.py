"""Seeded instances for `benchmarks/solver.py`: layers of a language model under several budgets.

A group is a layer (or, decoupled, one half of it), an option a pair (attention kept, FFN kept).
Rows are bytes and nanoseconds of several workloads on one H100-like device. Kinds:
`realistic`: every layer costs the same, losses differ (importance of layer, noise of the score);
`noisy`: costs are measured, so each layer's differ by 5 %;
`correlated`: noisy, and the loss is what the option saves, up to a constant: the hard case.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puzzle.solver import Problem

Floats = NDArray[np.float64]

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE = 8192, 64, 8, 128, 28672
BYTES_S, FLOPS_S, LAUNCH_S = 3.0e12, 6.0e14, 5e-6
# (what, batch, prompt tokens, new tokens), in the order in which budgets are added.
ROWS = (
    ("memory", 64, 2048, 2048),
    ("runtime", 64, 2048, 2048),
    ("params", 1, 0, 0),
    ("latency", 1, 2048, 256),
    ("memory", 8, 32768, 1024),
    ("runtime", 16, 512, 4096),
    ("prefill", 1, 16384, 0),
    ("decode", 128, 128, 1024),
)


@dataclass(frozen=True)
class Family:
    """`groups` layers with `attentions` x `ffns` options; decoupled: two groups a layer."""

    groups: int
    attentions: int
    ffns: int
    decoupled: bool = False


FAMILIES = {
    "16x15": Family(16, 3, 5),
    "36x8": Family(36, 2, 4),
    "32x54": Family(32, 6, 9),
    "80x54": Family(80, 6, 9),
    "126x54": Family(126, 6, 9),
    "80x(6+9)": Family(80, 6, 9, decoupled=True),
    "500x200": Family(500, 10, 20),
    "1000x1000": Family(1000, 25, 40),
}
KINDS = ("realistic", "noisy", "correlated")


def instance(
    family: str, kind: str, *, budgets: int, share: float, seed: int, batch: int | None = None
) -> Problem:
    """An instance whose every limit is `share` of what the parent (all options 0) uses.

    `batch` replaces the batch size of every row: bytes stay limited as they were, time per
    sequence too (a larger batch may take longer in proportion).
    """
    shape = FAMILIES[family]
    rng = np.random.default_rng([seed, list(FAMILIES).index(family), KINDS.index(kind)])
    attention_A = _kept(shape.attentions, 0.1)
    ffn_F = _kept(shape.ffns, 0.05)
    measured_RX = [_measured(rng, shape, kind) for _ in range(len(ROWS))]
    loss = _losses(rng, shape, attention_A, ffn_F)
    cost, limit = {}, {}
    for r, (what, size, prompt, new) in enumerate(ROWS[:budgets]):
        base = _cost(what, size, prompt, new, attention_A, ffn_F)
        mine = base if batch is None else _cost(what, batch, prompt, new, attention_A, ffn_F)
        name = f"{what}{r}"
        table = _groups(shape, *mine, measured_RX[r])
        cost[name] = [np.rint(values).astype(np.int64) for values in table]
        own = _groups(shape, *base, measured_RX[r])
        scale = 1.0 if batch is None or what in ("memory", "params") else batch / size
        limit[name] = int(share * scale * sum(float(values[0]) for values in own))
    if kind == "correlated":
        parents = {name: cost[name][0][0] or 1 for name in cost}
        loss = [
            1.0 - sum(cost[k][g] / parents[k] for k in cost) / len(cost) + 0.1 * (values > 0)
            for g, values in enumerate(loss)
        ]
    return Problem(loss, cost, limit)


def _kept(options: int, least: float) -> Floats:
    """What each half keeps of its parent: all, ..., `least`, and nothing."""
    return np.append(np.linspace(1.0, least, options - 1), 0.0)


def _cost(
    what: str, batch: int, prompt: int, new: int, attention_A: Floats, ffn_F: Floats
) -> tuple[Floats, Floats]:
    """(attention's, FFN's) bytes, parameters or nanoseconds by the share kept."""
    kv_A = attention_A * KV_HEADS
    params_A = (attention_A > 0) * 2.0 * HIDDEN * HEADS * HEAD_DIM + 2 * HIDDEN * kv_A * HEAD_DIM
    params_F = 3.0 * HIDDEN * INTERMEDIATE * ffn_F
    kv_bytes_A = 4.0 * kv_A * HEAD_DIM * (prompt + new) * batch
    if what == "params":
        return params_A, params_F
    if what == "memory":
        return 2 * params_A + kv_bytes_A, 2 * params_F
    prefill_A, prefill_F = (2 * x * batch * prompt / FLOPS_S for x in (params_A, params_F))
    step_A = np.maximum((2 * params_A + kv_bytes_A) / BYTES_S, 2 * params_A * batch / FLOPS_S)
    step_F = np.maximum(2 * params_F / BYTES_S, 2 * params_F * batch / FLOPS_S)
    decode_A, decode_F = ((x + LAUNCH_S * (x > 0)) * new for x in (step_A, step_F))
    parts = {"prefill": (1, 0), "decode": (0, 1)}.get(what, (1, 1))
    return (
        1e9 * (parts[0] * prefill_A + parts[1] * decode_A),
        1e9 * (parts[0] * prefill_F + parts[1] * decode_F),
    )


def _measured(rng: np.random.Generator, shape: Family, kind: str) -> Floats:
    """What measuring multiplies each group's costs with, one factor per option of the layer."""
    options = shape.attentions + shape.ffns if shape.decoupled else shape.attentions * shape.ffns
    if kind == "realistic":
        return np.ones((shape.groups, options))
    return np.exp(0.05 * rng.standard_normal((shape.groups, options)))


def _groups(shape: Family, attention_A: Floats, ffn_F: Floats, measured_GX: Floats) -> list[Floats]:
    if shape.decoupled:
        both = np.concatenate([attention_A, ffn_F]) * measured_GX
        return [half for row in both for half in np.split(row, [shape.attentions])]
    whole = (attention_A[:, None] + ffn_F[None, :]).ravel()
    return list(whole * measured_GX)


def _losses(
    rng: np.random.Generator, shape: Family, attention_A: Floats, ffn_F: Floats
) -> list[Floats]:
    """Damage by layer: lognormal importance, convex in what is removed, sub-additive in pairs."""
    found = []
    for _ in range(shape.groups):
        weight_a, weight_f = np.exp(rng.normal(0.0, 1.0, 2)) * (0.03, 0.06)
        damage_A = weight_a * (1 - attention_A) ** rng.uniform(1.5, 3)
        damage_F = weight_f * (1 - ffn_F) ** rng.uniform(1.2, 2.5)
        damage_A = damage_A * np.exp(0.1 * rng.standard_normal(damage_A.shape))
        damage_F = damage_F * np.exp(0.1 * rng.standard_normal(damage_F.shape))
        if shape.decoupled:
            found += [damage_A, damage_F]
            continue
        both = np.hypot(damage_A[:, None], damage_F[None, :]) * 0.5 + 0.5 * (
            damage_A[:, None] + damage_F[None, :]
        )
        found.append((both * np.exp(0.05 * rng.standard_normal(both.shape))).ravel())
    return found
