# make demo   set up, track a sample clip, compare the result with the motion it was made with
# make test   set up, lint, type-check, run the tests
# make docs   set up, build the documentation into site/

PYTHON ?= python3
VENV   ?= .venv
# Versions known to work together; `make CONSTRAINTS=` takes the newest ones.
CONSTRAINTS ?= -c constraints.txt
PIP_ARGS ?=

BIN := $(VENV)/bin
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test lint docs clean

demo: $(VENV)/.installed
	rm -rf demo
	PATH="$(abspath $(BIN)):$$PATH" sh examples/demo.sh demo

test: lint
	$(BIN)/python -m pytest -n auto --dist worksteal --durations=15

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) $(PIP_ARGS) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) $(PIP_ARGS) -e ".[dev]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) $(PIP_ARGS) -e ".[docs]"
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) demo site .mypy_cache .pytest_cache .ruff_cache
