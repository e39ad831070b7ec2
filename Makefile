# make demo | test | check    each sets up what it needs in .venv (nothing is installed elsewhere)
#
# PYTHON  the interpreter to build the environment with (3.10 or newer)
# TORCH   what to hand pip for torch. The default takes the wheel that your package index offers; on
#         a machine without a GPU the CPU build saves gigabytes, see "Install" in README.md.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check slow format clean

demo: $(VENV)/installed
	$(BIN)/posterior demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest

slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and by itself: asked for by another package, pip would take the newest build with a
# full set of GPU libraries even where a CPU build of an earlier version is at hand
$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) out dist .mypy_cache .ruff_cache .pytest_cache
