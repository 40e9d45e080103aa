"""Minitron: structured pruning of a whole parent, then distillation (2407.14679, 2408.11796)."""
