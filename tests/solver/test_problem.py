"""`Problem`: bad input is one clear sentence, and what is written is read back."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from random_problems import random_problem

from puzzle.solver import Problem, ProblemError, Rules, Solution, Span, Unlike, solve

LOSS = [[0.0, 1.0], [0.0, 3.0, 4.0]]
COST = {"bytes": [[8, 1], [8, 2, 1]]}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"loss": [[0.0, float("nan")], LOSS[1]]}, r"option 1 of group 0 has loss nan"),
        ({"loss": [LOSS[0], [0.0, 3.0, float("inf")]]}, r"option 2 of group 1 has loss inf"),
        ({"loss": [[], LOSS[1]]}, r"group 0 has losses of shape \(0,\)"),
        ({"loss": []}, r"at least one group"),
        ({"loss": [["a", "b"], LOSS[1]]}, r"losses of group 0 are not numbers"),
        ({"cost": {"bytes": [[8, -1], [8, 2, 1]]}}, r"holds -1; costs are never negative"),
        ({"cost": {"bytes": [[8.0, 1.0], [8, 2, 1]]}}, r"not integer: use bytes, nanoseconds"),
        ({"cost": {"bytes": [[8, 1]]}}, r"has 1 groups where the loss has 2"),
        ({"cost": {"bytes": [[8, 1], [8, 2]]}}, r"group 1 has 3 losses and 2 costs"),
        ({"cost": {"bytes": [[8, [1]], [8, 2, 1]]}}, r"ragged or not numbers"),
        ({"cost": {"bytes": [[2**63, 1], [8, 2, 1]]}}, r"holds 9223372036854775808, beyond int64"),
        ({"cost": {"bytes": [[2**70, 1], [8, 2, 1]]}}, r"beyond int64; use a larger unit"),
        ({"cost": {"bytes": [[2**62, 1], [8, 2, 1]]}}, r"may add up to .* beyond"),
        ({"limit": {"bytes": -1}}, r"limit of 'bytes' is -1, outside"),
        ({"limit": {"bytes": 1.5}}, r"limit of 'bytes' is 1.5, not an integer"),
        ({"limit": {"bites": 1}}, r"limit names 'bites'; the costs are \['bytes'\]"),
        ({"at_least": {"bytes": 2**63}}, r"at_least of 'bytes' is 9223372036854775808, outside"),
        ({"names": [["a"], ["b"]]}, r"names per group \[1, 1\] do not match"),
        ({"rules": Rules(max_names=1)}, r"max_names 1 needs names"),
        ({"rules": Rules(fixed=((0, 2),))}, r"option 2 of group 0, which is not there"),
        ({"rules": Rules(spans=(Span(0, 3, 0.0, {"bytes": 1}),))}, r"outside the 2 groups"),
        ({"rules": Rules(spans=(Span(0, 2, 0.0, {}),))}, r"span 0 to 2 costs \[\]"),
        ({"rules": Rules(spans=(Span(1, 2, float("nan"), {"bytes": 1}),))}, r"of span 1 to 2 has"),
        ({"rules": Rules(spans=(Span(1, 2, 0.0, {"bytes": -1}),))}, r"of span 1 to 2 holds -1"),
        ({"rules": Rules(spans=(Span(1, 2, 0.0, {"bytes": 2**62}),))}, r"may add up to .* beyond"),
        ({"rules": Rules(unlike=(Unlike((0,), 1),))}, r"has 1 picks"),
        ({"rules": Rules(unlike=(Unlike((0, 0), 2**70),))}, r"of which 1180591620717411303424 may"),
        ({"rules": Rules(unlike=(Unlike((0, -1), 1),))}, r"picks option -1 of group 1, which is"),
    ],
)
def test_bad_input_is_one_sentence(change: dict, sentence: str) -> None:
    with pytest.raises(ProblemError, match=sentence) as caught:
        Problem(**{"loss": LOSS, "cost": COST, "limit": {"bytes": 9}, **change})
    assert "\n" not in str(caught.value)


def test_all_options_forbidden() -> None:
    rules = Rules(forbidden=((0, 0), (0, 1)))
    with pytest.raises(ProblemError, match="all 2 options of group 0 are forbidden"):
        solve(Problem(LOSS, COST, {"bytes": 9}, rules=rules))


def test_two_fixed_options_of_one_group_exclude_each_other() -> None:
    with pytest.raises(ProblemError, match="group 0"):
        solve(Problem(LOSS, COST, {"bytes": 9}, rules=Rules(fixed=((0, 0), (0, 1)))))


@pytest.mark.parametrize("seed", range(20))
def test_json_both_ways(seed: int) -> None:
    problem = random_problem(seed)
    again = Problem.from_json(problem.to_json())
    assert again.to_json() == problem.to_json()
    assert again.rules == problem.rules
    assert all(np.array_equal(a, b) for a, b in zip(again.loss, problem.loss))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not JSON: EOF while parsing an object at line 1 column 1"),
        ("[" * 10**5, "not JSON: recursion limit exceeded"),
        ("[]", "the problem is [], expected an object"),
        ('{"loss": [[0.0]], "costs": {}}', "cost is missing"),
        ('{"loss": [[NaN]], "cost": {}, "limit": {}}', "option 0 of group 0 has loss nan"),
    ],
)
def test_json_that_is_no_problem(text: str, sentence: str) -> None:
    with pytest.raises(ProblemError, match=re.escape(sentence)) as caught:
        Problem.from_json(text)
    assert "\n" not in str(caught.value)


SPAN = {"start": 0, "stop": 2, "loss": 1.0, "cost": {"bytes": 1}}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weight": 1}, "weight is not known"),
        ({"loss": 3}, "loss is 3, expected a valid array"),
        ({"loss": [["0", 1], LOSS[1]]}, "loss[0][0] is '0', expected a valid number"),
        ({"loss": [[10**400, 1], LOSS[1]]}, "option 0 of group 0 has loss inf"),
        ({"cost": {"bytes": None}}, "cost.bytes is None, expected a valid array"),
        ({"cost": {"bytes": [[8.5, 1]]}}, "cost.bytes[0][0] is 8.5, expected a valid integer"),
        ({"limit": [9]}, "limit is [9], expected an object"),
        ({"limit": {"bytes": "9"}}, "limit.bytes is '9', expected a valid integer"),
        ({"names": [["a", 2], []]}, "names[0][1] is 2, expected a valid string"),
        ({"rules": []}, "rules is [], expected an object"),
        ({"rules": {"forbiden": []}}, "rules.forbiden is not known"),
        ({"rules": {"forbidden": [0, 1]}}, "rules.forbidden[0] is 0, expected a valid array"),
        ({"rules": {"forbidden": [["a", 1]]}}, "rules.forbidden[0][0] is 'a', expected a valid in"),
        ({"rules": {"forbidden": [[7, 0]]}}, "names option 0 of group 7, which is not there"),
        (
            {"rules": {"fixed": [[float("nan"), 1]]}},
            "rules.fixed[0][0] is nan, expected a valid in",
        ),
        ({"rules": {"fixed": [[0, 1, 2]]}}, "rules.fixed[0] does not read: Tuple should have at m"),
        ({"rules": {"spans": [{}]}}, "rules.spans[0].start is missing"),
        ({"rules": {"spans": [{**SPAN, "name": 3}]}}, "rules.spans[0].name is 3, expected a valid"),
        ({"rules": {"spans": [{**SPAN, "start": 0.5}]}}, "rules.spans[0].start is 0.5, expected"),
        ({"rules": {"spans": [{**SPAN, "loss": "1"}]}}, "rules.spans[0].loss is '1', expected a v"),
        ({"rules": {"spans": [{**SPAN, "start": -1}]}}, "span -1 to 2 lies outside the 2 groups"),
        ({"rules": {"unlike": [{"picks": [0, 0]}]}}, "rules.unlike[0].at_most is missing"),
        ({"rules": {"unlike": [{"picks": "00", "at_most": 1}]}}, "rules.unlike[0].picks is '00',"),
        ({"rules": {"max_names": 1.5}}, "rules.max_names is 1.5, expected a valid integer"),
    ],
)
def test_json_with_a_mistake_is_one_sentence_that_says_where(change: dict, sentence: str) -> None:
    written = {"loss": LOSS, "cost": COST, "limit": {"bytes": 9}, **change}
    with pytest.raises(ProblemError, match=re.escape(sentence)) as caught:
        Problem.from_json(json.dumps(written))
    assert "\n" not in str(caught.value)


def test_solutions_are_written_and_read() -> None:
    problem = Problem(LOSS, COST, {"bytes": 9})
    for solution in (solve(problem), solve(problem.with_limit(bytes=1))):
        assert Solution.from_json(solution.to_json()) == solution


def test_from_frame() -> None:
    frame = pd.DataFrame(
        {
            "group": ["l0", "l0", "l1", "l1", "l1"],
            "loss": [*LOSS[0], *LOSS[1]],
            "bytes": [8, 1, 8, 2, 1],
            "name": ["a", "b", "a", "b", "c"],
        }
    )
    problem = Problem.from_frame(frame, {"bytes": 9})
    assert problem.names == (("a", "b"), ("a", "b", "c"))
    assert solve(problem).picks == (1, 0)
    with pytest.raises(ProblemError, match=r"the frame lacks \['ns'\]"):
        Problem.from_frame(frame, {"ns": 9})


def test_a_solution_reads_well() -> None:
    problem = Problem(LOSS, COST, {"bytes": 9}, names=[["a", "b"], ["a", "b", "c"]])
    solution = solve(problem)
    assert "slack" in str(solution)
    assert solution.table(problem).splitlines()[1].split() == ["0", "1", "b", "1", "1"]
