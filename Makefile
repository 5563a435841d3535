# make demo   set up, train on rMD17 ethanol, run it in ASE and OpenMM, write a report
# make test   set up, run the tests

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
VENV := .venv
BIN := $(VENV)/bin
# The bound that the extra openmm sets, given to pip at once: else it fetches the newest torch first.
PACKAGES := -e '.[all,dev]' 'torch>=2.10,<2.13'

# The first interpreter that is new enough and not too new; `make PYTHON=/path/to/python demo` picks another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	if $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; \
	then echo $$p; break; fi; done)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-gpu lint format clean

help:
	@sed -n 's/^# make/make/p' Makefile

# The environment is complete when this file is newer than pyproject.toml.
install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python from 3.11 to 3.13 found: install one, or name it with 'make PYTHON=/path/to/python'." >&2; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version), about 5 GB and one to three minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off $(PACKAGES) \
		| sed -n -u -E -e '/\.metadata/d' -e 's/^ *(Downloading|Using cached) ([^ ]+) \((.*)\)$$/  \2 (\3)/p' \
		-e 's/^Installing collected packages.*/  unpacking and installing, the longest part/p'
	@touch $@

demo: install
	@$(BIN)/python examples/demo.py

# Two at a time, a file's tests in one process, where they share what they train and compile.
test: install lint
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations=10

# make test-slow   the tests that take minutes
test-slow: install
	@$(BIN)/python -m pytest -m slow

# make test-gpu    the tests that need a CUDA device
test-gpu: install
	@$(BIN)/python -m pytest -m gpu

# make lint   style and types, as `make test` checks them
lint: install
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# make format mend the style
format: install
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

clean:
	rm -rf runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
