"""The mixed-integer program: one option per group under several budgets."""

if __name__ != "puzzle.solver":
    raise ImportError("import puzzle.solver, not solver: a second copy of every class would follow")

from puzzle.solver.frontier import frontier
from puzzle.solver.problem import Problem, ProblemError, Rules, Solution, Span, Unlike
from puzzle.solver.sensitivity import Change, Sensitivity, sensitivity
from puzzle.solver.solve import solve, solve_any

__all__ = [
    "Change",
    "Problem",
    "ProblemError",
    "Rules",
    "Sensitivity",
    "Solution",
    "Span",
    "Unlike",
    "frontier",
    "sensitivity",
    "solve",
    "solve_any",
]
