"""What is asked and what is answered: `Problem` and `Solution`, both plain values.

Legend: G groups, n_g options of group g. A pick is an option's index in its group; where a span
covers the group it is `~s`, the bitwise complement of the span's index s (-1 is span 0).
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

if TYPE_CHECKING:
    import pandas as pd
    from pydantic_core import ErrorDetails

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
INT64_SUM = 2**62  # sums of costs stay below this, so that differences fit in int64 too


class ProblemError(ValueError):
    """A problem that cannot be read: one sentence with the numbers."""


@dataclass(frozen=True)
class Span:
    """One option for several consecutive groups at once: groups `start` to `stop - 1`.

    Removing a run of layers, or fusing their FFNs, is a span. `cost` names every cost of the
    problem. A span's name does not count as a distinct option name.
    """

    start: int
    stop: int
    loss: float
    cost: Mapping[str, int]
    name: str = "span"


@dataclass(frozen=True)
class Unlike:
    """At most `at_most` groups may hold the same pick as in `picks`, an earlier solution."""

    picks: tuple[int, ...]
    at_most: int


@dataclass(frozen=True)
class Rules:
    """Side constraints; all are optional.

    `forbidden` and `fixed` hold (group, option) pairs; `max_names` bounds how many distinct option
    names the whole answer uses (needs `Problem.names`).
    """

    forbidden: tuple[tuple[int, int], ...] = ()
    fixed: tuple[tuple[int, int], ...] = ()
    spans: tuple[Span, ...] = ()
    unlike: tuple[Unlike, ...] = ()
    max_names: int | None = None


@dataclass(frozen=True, eq=False)
class Problem:
    """Pick one option per group: least total loss, every total cost within its limits.

    `loss[g]` has shape (n_g,), any finite numbers; `cost[name][g]` has shape (n_g,), int64, never
    negative; `limit[name]` and `at_least[name]` bound the total. `names[g]` names the options.

    >>> from puzzle.solver import solve
    >>> problem = Problem([[0.0, 1.0], [0.0, 3.0]], {"bytes": [[8, 1], [8, 1]]}, {"bytes": 10})
    >>> solve(problem).picks
    (1, 0)
    """

    loss: Sequence[Floats]
    cost: Mapping[str, Sequence[Ints]]
    limit: Mapping[str, int]
    at_least: Mapping[str, int] = field(default_factory=dict)
    names: Sequence[Sequence[str]] | None = None
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        put = object.__setattr__
        if not len(self.loss):
            raise ProblemError("a problem needs at least one group with its losses")
        losses = (_losses(f"group {g}", values) for g, values in enumerate(self.loss))
        put(self, "loss", tuple(losses))
        put(self, "cost", {name: self._costs(name, table) for name, table in self.cost.items()})
        for field_name in ("limit", "at_least"):
            put(self, field_name, self._limits(field_name))
        if self.names is not None:
            put(self, "names", self._names(self.names))
        put(self, "rules", self._rules(self.rules))

    @property
    def groups(self) -> int:
        """Number of groups, G."""
        return len(self.loss)

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        limit: Mapping[str, int],
        *,
        at_least: Mapping[str, int] | None = None,
        rules: Rules | None = None,
    ) -> Problem:
        """Read a pandas frame with one row per option.

        Columns: `group` (in order of first appearance), `loss`, one per cost that `limit` or
        `at_least` names, and optionally `name`.
        """
        at_least = dict(at_least or {})
        wanted = [*dict.fromkeys([*limit, *at_least])]
        missing = [name for name in ["group", "loss", *wanted] if name not in frame.columns]
        if missing:
            raise ProblemError(f"the frame lacks {missing}; it has {list(frame.columns)}")
        parts = [part for _, part in frame.groupby("group", sort=False)]
        return cls(
            loss=[part["loss"].to_numpy() for part in parts],
            cost={name: [part[name].to_numpy() for part in parts] for name in wanted},
            limit=limit,
            at_least=at_least,
            names=[list(part["name"]) for part in parts] if "name" in frame.columns else None,
            rules=rules or Rules(),
        )

    @classmethod
    def from_json(cls, text: str) -> Problem:
        """Read what `to_json` wrote."""
        try:
            return cls(**dict(_Written.model_validate_json(text)))
        except ValidationError as error:
            raise ProblemError(_sentence(error.errors()[0])) from None

    def to_json(self) -> str:
        """One JSON object that `from_json` reads back to the same problem."""
        return json.dumps(
            {
                "loss": [group.tolist() for group in self.loss],
                "cost": {k: [group.tolist() for group in v] for k, v in self.cost.items()},
                "limit": dict(self.limit),
                "at_least": dict(self.at_least),
                "names": self.names,
                "rules": asdict(self.rules),
            }
        )

    def with_limit(self, **limit: int) -> Problem:
        """The same tables under other upper limits; limits not named stay."""
        return replace(self, limit={**self.limit, **limit})

    def unlike(self, picks: Sequence[int], alpha: float = 0.8) -> Problem:
        """The same problem, with at most `alpha` of the picks equal to an earlier solution's."""
        rule = Unlike(tuple(picks), math.floor(alpha * self.groups + 1e-9))
        return replace(self, rules=replace(self.rules, unlike=(*self.rules.unlike, rule)))

    def _costs(self, name: str, table: Sequence[ArrayLike]) -> tuple[Ints, ...]:
        if len(table) != self.groups:
            raise ProblemError(
                f"cost {name!r} has {len(table)} groups where the loss has {self.groups}"
            )
        read = tuple(
            _integers(f"cost {name!r} of group {g}", values) for g, values in enumerate(table)
        )
        for g, (costs, losses) in enumerate(zip(read, self.loss)):
            if costs.shape != losses.shape:
                raise ProblemError(
                    f"group {g} has {len(losses)} losses and {costs.size} costs {name!r}"
                )
        return read

    def _check_sums(self, spans: Sequence[Span]) -> None:
        for name, table in self.cost.items():
            most = [int(costs.max()) for costs in table]  # of what starts at each group
            for span in spans:
                most[span.start] = max(most[span.start], int(span.cost[name]))
            if sum(most) > INT64_SUM:
                raise ProblemError(
                    f"costs {name!r} may add up to {sum(most)}, beyond {INT64_SUM} (2**62); "
                    "use a larger unit"
                )

    def _limits(self, which: str) -> dict[str, int]:
        limits = {}
        for name, value in getattr(self, which).items():
            if name not in self.cost:
                raise ProblemError(f"{which} names {name!r}; the costs are {sorted(self.cost)}")
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise ProblemError(f"{which} of {name!r} is {value!r}, not an integer")
            if not 0 <= value < 2**63:
                raise ProblemError(f"{which} of {name!r} is {value}, outside 0 to 2**63 - 1")
            limits[name] = int(value)
        return limits

    def _names(self, names: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
        read = tuple(tuple(str(name) for name in group) for group in names)
        sizes, wanted = [len(group) for group in read], [len(group) for group in self.loss]
        if sizes != wanted:
            raise ProblemError(f"names per group {sizes} do not match the options {wanted}")
        return read

    def _rules(self, rules: Rules) -> Rules:
        rules = replace(
            rules,
            forbidden=tuple((int(g), int(o)) for g, o in rules.forbidden),
            fixed=tuple((int(g), int(o)) for g, o in rules.fixed),
        )
        for g, option in (*rules.forbidden, *rules.fixed):
            if not (0 <= g < self.groups and 0 <= option < len(self.loss[g])):
                raise ProblemError(f"a rule names option {option} of group {g}, which is not there")
        for span in rules.spans:
            self._check_span(span)
        self._check_sums(rules.spans)
        for earlier in rules.unlike:
            if len(earlier.picks) != self.groups or not 0 <= earlier.at_most <= self.groups:
                raise ProblemError(
                    f"an earlier solution has {len(earlier.picks)} picks of which "
                    f"{earlier.at_most} may recur; the problem has {self.groups} groups"
                )
            for g, pick in enumerate(earlier.picks):
                if not -len(rules.spans) <= pick < len(self.loss[g]):
                    raise ProblemError(
                        f"an earlier solution picks option {pick} of group {g}, which is not there"
                    )
        if rules.max_names is not None and (self.names is None or rules.max_names < 1):
            raise ProblemError(f"max_names {rules.max_names} needs names and must be at least 1")
        return rules

    def _check_span(self, span: Span) -> None:
        where = f"span {span.start} to {span.stop}"
        if not 0 <= span.start < span.stop <= self.groups:
            raise ProblemError(f"{where} lies outside the {self.groups} groups")
        if set(span.cost) != set(self.cost):
            raise ProblemError(
                f"{where} costs {sorted(span.cost)}; the problem's costs are {sorted(self.cost)}"
            )
        _losses(where, [span.loss])
        for name, value in span.cost.items():
            _integers(f"cost {name!r} of {where}", [value])


def _losses(where: str, values: ArrayLike) -> Floats:
    try:
        read = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ProblemError(f"the losses of {where} are not numbers: {error}") from error
    if read.ndim != 1 or read.size == 0:
        raise ProblemError(f"{where} has losses of shape {read.shape}; it needs (options,)")
    bad = np.flatnonzero(~np.isfinite(read))
    if bad.size:
        raise ProblemError(f"option {bad[0]} of {where} has loss {read[bad[0]]}")
    read.setflags(write=False)
    return read


def _integers(where: str, values: ArrayLike) -> Ints:
    try:
        raw = np.asarray(values)
    except (ValueError, OverflowError) as error:
        raise ProblemError(f"{where} is ragged or not numbers: {error}") from error
    if raw.ndim != 1 or raw.size == 0:
        raise ProblemError(f"{where} has shape {raw.shape}; it needs (options,)")
    if raw.dtype.kind in "Of" and isinstance(values, list | tuple):
        # Lists that mix integers below and above 2**63 come as floats.
        integers = [value for value in values if type(value) is int]
        if len(integers) == len(values):
            largest = max(integers, key=abs)
            raise ProblemError(f"{where} holds {largest}, beyond int64; use a larger unit")
    if raw.dtype.kind not in "iu":
        raise ProblemError(f"{where} is {raw.dtype}, not integer: use bytes, nanoseconds")
    if raw.dtype.kind == "u" and int(raw.max()) >= 2**63:
        raise ProblemError(f"{where} holds {int(raw.max())}, beyond int64; use a larger unit")
    read = raw.astype(np.int64)
    if int(read.min()) < 0:
        raise ProblemError(f"{where} holds {int(read.min())}; costs are never negative")
    read.setflags(write=False)
    return read


class _Written(BaseModel):
    """A problem as JSON has it: the types of its fields, down to the last number."""

    model_config = ConfigDict(strict=True, extra="forbid")

    loss: list[list[float]]
    cost: dict[str, list[list[int]]]
    limit: dict[str, int]
    at_least: dict[str, int] = {}
    names: list[list[str]] | None = None
    rules: Rules = Rules()


_WORDS = {
    "missing": "is missing",
    "extra_forbidden": "is not known",
    "unexpected_keyword_argument": "is not known",
}


def _sentence(error: ErrorDetails) -> str:
    """One mistake in a file: where, what is there, and what should be."""
    if error["type"] == "json_invalid":
        return f"not JSON: {error['ctx']['error']}"
    keys = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in error["loc"])
    where, message = keys.removeprefix(".") or "the problem", error["msg"]
    expected = message.removeprefix("Input should be ")
    if expected != message:
        return f"{where} is {reprlib.repr(error['input'])}, expected {expected}"
    return f"{where} {_WORDS.get(error['type'], f'does not read: {message}')}"


@dataclass(frozen=True)
class Solution:
    """The answer, checked in integers.

    `status`: `optimal` (no answer is better by more than the gap asked for), `feasible` (a limit
    of time was reached; `bound` says how much better the best could be), `infeasible`, or
    `unknown` (time ran out before any answer was found). `picks` is None in the last two.
    `slack[name]` is limit minus use, an exact integer; `name (at least)` is use minus lower limit.
    `gap` is (loss - bound) / |loss|. `proof`: `lagrangian`, `dp`, `mip:<backend>` or `none`.
    """

    picks: tuple[int, ...] | None
    loss: float
    used: Mapping[str, int]
    slack: Mapping[str, int]
    bound: float
    gap: float
    status: str
    proof: str
    seconds: float
    conflict: Mapping[str, int] = field(default_factory=dict)
    message: str = ""

    def to_json(self) -> str:
        """One JSON object; infinities are written as null."""
        data = asdict(self)
        for name in ("loss", "bound", "gap"):
            data[name] = data[name] if math.isfinite(data[name]) else None
        return json.dumps(data)

    @classmethod
    def from_json(cls, text: str) -> Solution:
        """Read what `to_json` wrote."""
        data = json.loads(text)
        least = math.inf if data["status"] == "infeasible" else -math.inf
        absent = {"loss": math.inf, "bound": least, "gap": math.inf}
        for name, value in absent.items():
            data[name] = value if data[name] is None else data[name]
        picks = data["picks"]
        return cls(**{**data, "picks": None if picks is None else tuple(picks)})

    def __str__(self) -> str:
        head = f"{self.status} ({self.proof}) in {self.seconds:.3f} s"
        if self.picks is None:
            return f"{head}: {self.message}"
        lines = [f"{head}: loss {self.loss:.6g}, bound {self.bound:.6g}, gap {self.gap:.2g}"]
        width = max((len(name) for name in self.slack), default=0)
        for name, slack in self.slack.items():
            used = self.used[name.removesuffix(" (at least)")]
            lines.append(f"  {name:{width}}  used {used:>20,}  slack {slack:>20,}")
        return "\n".join(lines)

    def table(self, problem: Problem) -> str:
        """One line per pick: groups, option, its name, its loss and costs."""
        assert self.picks is not None, "there is no table without picks"
        costs = list(problem.cost)
        rows = [["group", "option", "name", "loss", *costs]]
        group = 0
        while group < problem.groups:
            pick = self.picks[group]
            if pick < 0:
                span = problem.rules.spans[~pick]
                where, name, loss = f"{span.start}-{span.stop - 1}", span.name, span.loss
                used = [int(span.cost[cost]) for cost in costs]
                option, group = f"span {~pick}", span.stop
            else:
                name = problem.names[group][pick] if problem.names else ""
                where, option, loss = str(group), str(pick), float(problem.loss[group][pick])
                used = [int(problem.cost[cost][group][pick]) for cost in costs]
                group += 1
            rows.append([where, option, name, f"{loss:.6g}", *(f"{value:,}" for value in used)])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows
        )
