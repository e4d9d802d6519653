# make demo and make test do all the set-up: a virtual environment with pinned dependencies, in .venv.
# PYTHON=python3.12 make ... chooses another interpreter.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/stamp
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-gpu test-slurm lint format types wheel-check check setup clean

demo: $(STAMP)
	$(BIN)/modexp sweep demo

test: $(STAMP)
	$(BIN)/python -m pytest -n auto

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

test-slurm: $(STAMP)
	$(BIN)/python -m pytest -m slurm

lint: $(STAMP)
	$(BIN)/ruff check modexp tests
	$(BIN)/ruff format --check modexp tests

format: $(STAMP)
	$(BIN)/ruff check --fix modexp tests
	$(BIN)/ruff format modexp tests

types: $(STAMP)
	$(BIN)/mypy

# The wheel in an environment that lacks torch, datasets, wandb and matplotlib: planning must not need them.
wheel-check: $(STAMP)
	sh tests/wheel_check.sh $(BIN)/python

check: test lint types wheel-check

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "modexp needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing)."; \
	  echo "  Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; } >&2
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments: its venv or ensurepip module is missing."; \
	  echo "  On Debian and Ubuntu: apt install python3-venv"; exit 2; } >&2
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist
