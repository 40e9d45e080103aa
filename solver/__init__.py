"""The mixed-integer program: one option per group under several budgets."""

if __name__ != "puzzle.solver":
    raise ImportError("import puzzle.solver, not solver: a second copy of every class would follow")
