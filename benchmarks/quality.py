"""The proof: the search's child of SmolLM2-135M against every alternative at equal cost.

    python benchmarks/quality.py WORK [GOAL/METHOD ...]
    python benchmarks/quality.py WORK library [SEED]
    python benchmarks/quality.py times

Goals are .9, .75, .6 and .5 of the parent's time per request on this CPU (a prompt of 128 tokens
and 64 new ones, as `throughput_cpu.py` measures) and of its parameters. The methods are those of
`quality_methods.py`; what picks blocks of the library enters mended, and as it is assembled under
`METHOD, not mended`. All learn from the same calibration text, which the parent wrote itself, and
choose by the same scoring text; children are examined on other web text and on WordNet questions
that nothing is chosen by. Rows say what taught them, and only such are compared as the same text
taught. `GOAL/METHOD/healed` heals a child with 100,000 tokens that the parent wrote, by cosine +
KL, or by KL alone where its hidden size is not the parent's; of Minitron's cuts the one that is
the best once lightly healed. `GOAL/METHOD/seed1` is taught by other writing of the parent, in
another run.

WORK is a run directory, not that of `benchmarks/scoring.py`, which has another space; the library
and scores are made where they are missing and a method picks by them, on a GPU (`gpu/README.md`) in
minutes, on two cores with bfloat16 in an hour. Two steps that search at once need a WORK each:
what is looked around lies at one place in it. Without names, everything is done that
`results/quality.json` lacks of this text but the healings; a killed run goes on where it was. Last,
on the CPU that the goals are about, `times` takes the time of every child.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from cpu_menu import TAUGHT, library, scored, unpruned
from quality_contest import LENGTH, Contest, Entry, Goal
from quality_figure import MEASURED, draw
from quality_methods import ASSEMBLED, METHODS, OTHERS, OURS, UNIFORM
from quality_times import speed
from scoring_bench import DTYPE, MODEL

from puzzle import corpus
from puzzle.config import Heal
from puzzle.device import placed
from puzzle.hardware.profile import device_name
from puzzle.heal import Course, heal
from puzzle.parent import open_parent
from puzzle.progress import track
from puzzle.run import fingerprint
from puzzle.training import Texts

SHARES = ("0.75", "0.5", "0.9", "0.6")  # the headline's first
GOALS = [Goal(of, share) for of in ("time", "parameters") for share in SHARES]
HEAL = Heal(tokens=100_000, batch_tokens=2_000, learning_rate=2e-4, dtype=DTYPE)
SEEDS = range(3)
RATIO = "kl_over_best_baseline"
OVER_UNIFORM = {"kl_over_uniform_refit": ASSEMBLED, "kl_over_uniform_mended": ""}  # both of them
DRAWS = 10_000  # of a bootstrap
Row = dict[str, Any]


def taken(work: Path, step: str) -> Row:
    """The row of one step: a method at a goal, with a seed, healed or not."""
    of, method, *more = step.split("/")
    (goal,) = (goal for goal in GOALS if str(goal) == of)
    seed = next((seed for seed in SEEDS if f"seed{seed}" in more), 0)
    contest = contest_of(work, seed, blocks=method not in OTHERS)
    entry = METHODS[method](contest, goal)
    if "healed" in more:
        entry = healed(contest, step, entry.to_heal() if entry.to_heal else entry)
    return {
        "of": goal.of,
        "share": goal.share,
        "method": method,
        "taught": TAUGHT,
        "trained_on": device_name(),
        "seed": seed,
        "healed_tokens": HEAL.tokens if "healed" in more else 0,
        "size_share": entry.size_share,
        "predicted_kl": entry.predicted_kl,
        "child": entry.description,
        **contest.examined(step.replace("/", "."), entry),
    }


@cache
def contest_of(work: Path, seed: int, *, blocks: bool) -> Contest:
    """The library is only for methods that pick its blocks."""
    return Contest((scored if blocks else unpruned)(folder_of(work, seed), seed))


def folder_of(work: Path, seed: int) -> Path:
    """Each seed has a run of its own."""
    return work / f"seed{seed}" if seed else work


def healed(contest: Contest, step: str, entry: Entry) -> Entry:
    """The entry with its tensors healed by the parent."""
    width = entry.make().config.hidden_size
    options = HEAL.model_copy(update={"layers": entry.layers})
    if width != contest.parent.shape.hidden_size:
        options = options.model_copy(update={"cosine": 0.0})
    tokens = contest.lesson[: HEAL.tokens // LENGTH]
    inputs = fingerprint(entry.inputs, options.model_dump(), corpus.digest(tokens))
    course = Course(contest.run, f"bench/quality/weights/{step.replace('/', '.')}", inputs)

    def make() -> Any:
        weights = heal(course, entry.make(), contest.teacher, Texts(tokens), options)
        return entry.rebuild(weights)

    return replace(entry, inputs=inputs, make=make)


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The headline figures of both kinds of goals, of what has been measured."""
    of_time, of_parameters = (
        _summary([row for row in rows if row["of"] == of]) for of in ("time", "parameters")
    )
    return {**of_time, **_time_error(rows), "summary_parameters": of_parameters}


def _time_error(rows: Sequence[Row]) -> dict[str, float]:
    """How far the times that children of the library were chosen by are from those measured."""
    errors = {
        row["child"]: abs(row["size_share"] / row["time_share"] - 1)
        for row in rows
        if row["of"] == "time" and row["method"] not in OTHERS and "time_share" in row
    }
    if not errors:
        return {}
    return {"time_error_median": round(float(np.median([*errors.values()])), 4)}


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for share in sorted({row["share"] for row in rows}, reverse=True):
        for tokens, suffix in ((0, ""), (HEAL.tokens, "_healed")):
            by_seed: dict[str, list[Any]] = {}
            for seed in SEEDS:
                alike = [
                    row for row in rows if (row["healed_tokens"], row["seed"]) == (tokens, seed)
                ]
                figures = _figures({r["method"]: r for r in alike if r["share"] == share})
                figures |= _at_equal_size(share, alike)
                for name, value in figures.items():
                    by_seed.setdefault(name, []).append(value)
                    if seed == SEEDS[0]:
                        found.setdefault(f"{name}{suffix}", {})[share] = value
            for name in (RATIO, *OVER_UNIFORM):
                if len(by_seed.get(name, ())) > 1:
                    found.setdefault(f"{name}_by_seed{suffix}", {})[share] = by_seed[name]
    return found


def _figures(by_method: dict[str, Row]) -> dict[str, Any]:
    """Ours beside those taught by the same text: the best of other people's, uniform, Minitron."""
    ours, found = by_method.get(OURS), dict[str, Any]()
    if ours:
        by_method = {n: row for n, row in by_method.items() if row["taught"] == ours["taught"]}
    others = [by_method[name] for name in OTHERS if name in by_method]
    if ours and others:
        best = min(others, key=lambda row: row["kl"])
        found["taught"], found["compared_with"] = ours["taught"], [row["method"] for row in others]
        found["measured_shares"] = [row.get(MEASURED[row["of"]]) for row in (ours, best)]
        found[RATIO] = round(ours["kl"] / best["kl"], 4)
        found["kl_over_best_baseline_interval"] = interval(ours["kls"], best["kls"])
        found["best_baseline"] = best["method"]
    for name, suffix in OVER_UNIFORM.items():
        one, other = (by_method.get(method + suffix) for method in (OURS, UNIFORM))
        if one and other:
            found[name] = round(one["kl"] / other["kl"], 4)
            found[f"{name}_interval"] = interval(one["kls"], other["kls"])
    if ours and "minitron" in by_method:
        gap = paired(ours["right"], by_method["minitron"]["right"])
        found["accuracy_minus_minitron"], found["accuracy_minus_minitron_std_error"] = gap
    return found


def _at_equal_size(share: str, rows: Sequence[Row]) -> dict[str, float]:
    """Our KL over the least of others, and over uniform's, as they would be at our measured size.

    A method's log KL lies on the line through its two measured sizes nearest to ours.
    """
    ours = {
        suffix: row
        for row in rows
        for suffix in OVER_UNIFORM.values()
        if (row["method"], row["share"]) == (OURS + suffix, share) and MEASURED[row["of"]] in row
    }
    found = {
        name: ours[suffix]["kl"] / kl
        for name, suffix in OVER_UNIFORM.items()
        if suffix in ours and (kl := _kl_at(UNIFORM + suffix, ours[suffix], rows))
    }
    if "" in ours:
        kls = [kl for method in OTHERS if (kl := _kl_at(method, ours[""], rows))]
        found |= {RATIO: ours[""]["kl"] / min(kls)} if kls else {}
    return {f"{name}_at_equal_size": round(value, 4) for name, value in found.items()}


def _kl_at(method: str, ours: Row, rows: Sequence[Row]) -> float | None:
    """The KL of a method at the size of our row; None where only one of its sizes is measured."""
    measured = MEASURED[ours["of"]]
    size = ours[measured]
    points = {
        row[measured]: np.log(row["kl"])
        for row in rows
        if (row["method"], row["taught"]) == (method, ours["taught"]) and measured in row
    }
    if len(points) < 2:
        return None
    one, other = sorted(points, key=lambda at: abs(at - size))[:2]
    slope = (points[other] - points[one]) / (other - one)
    return float(np.exp(points[one] + slope * (size - one)))


def interval(ours: Sequence[float], others: Sequence[float]) -> list[float]:
    """95 % of the ratio of mean KLs, by a bootstrap over the sequences both were measured on."""
    pairs = np.array([ours, others])
    draw_from = np.random.default_rng(0)
    which = draw_from.integers(pairs.shape[1], size=(DRAWS, pairs.shape[1]))
    means = pairs[:, which].mean(axis=-1)
    return [round(float(each), 4) for each in np.quantile(means[0] / means[1], (0.025, 0.975))]


def paired(ours: str, others: str) -> tuple[float, float]:
    """Difference of the shares of right answers and its standard error, question by question."""
    gaps = np.array([int(one) - int(other) for one, other in zip(ours, others, strict=True)])
    return round(float(gaps.mean()), 4), round(float(gaps.std(ddof=1) / len(gaps) ** 0.5), 4)


def known() -> list[Row]:
    """The rows of the results file."""
    path = record.RESULTS / "quality.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return [row for row in rows if row.get("method")]


def times() -> None:
    """Give every row that lacks it the measured time of its child on this CPU."""
    parent, rows = open_parent(str(MODEL)), known()
    for row in track([row for row in rows if "time_share" not in row], "times"):
        row |= speed(row["child"], parent)
        record.update("quality", ("step", row["step"]), summary(rows), [row])
    draw([row for row in rows if row["seed"] == SEEDS[0]])


@placed
def take(work: Path, steps: Sequence[str]) -> None:
    """Take the steps that are named, or those that are missing."""
    done = {row["step"] for row in known() if row["taught"] == TAUGHT}
    every = [f"{goal}/{method}" for goal in GOALS for method in METHODS]
    for step in steps or [step for step in every if step not in done]:
        row = taken(work, step)
        others = [each for each in known() if each["step"] != step]
        record.update("quality", ("step", step), summary([*others, row]), [row])
        print(f"{step}: KL {row['kl']:.3f}, accuracy {row['accuracy']:.3f}", flush=True)


def main() -> None:
    """Train and examine children, or the library alone, or take times."""
    torch.set_num_threads(1)
    if sys.argv[1:] == ["times"]:
        times()
    elif sys.argv[2:3] == ["library"]:
        seed = int(sys.argv[3]) if len(sys.argv) > 3 else SEEDS[0]
        placed(library)(folder_of(Path(sys.argv[1]), seed), seed)
    else:
        take(Path(sys.argv[1]), sys.argv[2:])


if __name__ == "__main__":
    main()
