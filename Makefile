# make demo    a first search, on the embedded parent
# make test    the whole suite
# make check   format, lint, types, import rules
# make setup   the environment for working on Puzzle
# Another interpreter or another place: make test PYTHON=python3.12 VENV=/tmp/venv

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -c constraints.txt
RUN := $(VENV)/.installed-run
DEV := $(VENV)/.installed-dev
LINKS := $(addprefix ../../,$(filter-out %/__pycache__,$(wildcard puzzle/*)) blocks solver)

.PHONY: setup demo test check types
setup: $(DEV) types

demo: $(RUN)
	$(BIN)/puzzle search --budget h100-1gpu

test: $(DEV)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

check: $(DEV) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p puzzle
	$(BIN)/python -m pytest tests/test_import_rules.py

# The package as type checkers can follow it: blocks/ and solver/ lie inside puzzle/ (see mypy_path).
types:
	@mkdir -p .types/puzzle
	@ln -sfn $(LINKS) .types/puzzle
	@find .types/puzzle -type l ! -exec test -e {} \; -delete

# Stamps of what is installed; a change of the dependencies installs again.
$(RUN): WHAT = .
$(DEV): WHAT = '.[dev]'
$(RUN) $(DEV): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e $(WHAT)
	touch $@
