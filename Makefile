# make setup | demo | test | test-slow | test-oldest | test-oldest-extras | lint | bench | docs | dist
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Threads that have nothing to do sleep instead of spinning: several times faster where other programs run.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo test test-slow test-oldest test-oldest-extras bench lint docs dist clean

setup: $(STAMP)

# torch is pinned first and by itself: pip then takes the CPU build where the machine offers one, and nothing
# that follows can pull in another.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

demo: setup
	$(BIN)/straightvq demo

# One process of one thread for each core: the tensors of the tests are tiny.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test: setup lint
	$(PYTEST) -m "not slow"

test-slow: setup
	$(PYTEST)

# The contracts with the oldest torch and numpy that the layer allows, in an environment of its own.
OLDEST := .venv-oldest

test-oldest:
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --constraint constraints-oldest.txt torch
	$(OLDEST)/bin/pip install --quiet --constraint constraints-oldest.txt --editable . pytest pytest-xdist hypothesis safetensors huggingface-hub
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n auto -m "not slow" tests/contracts

# What uses the extras, with the oldest versions of them.
OLDEST_EXTRAS := .venv-oldest-extras

test-oldest-extras:
	test -x $(OLDEST_EXTRAS)/bin/python || $(PYTHON) -m venv $(OLDEST_EXTRAS)
	$(OLDEST_EXTRAS)/bin/pip install --quiet --constraint constraints-oldest-extras.txt torch
	$(OLDEST_EXTRAS)/bin/pip install --quiet --constraint constraints-oldest-extras.txt --editable ".[sound]" pytest pytest-xdist hypothesis
	OMP_NUM_THREADS=1 $(OLDEST_EXTRAS)/bin/python -m pytest -n auto -W ignore -m "not slow" tests/unit tests/recipes

# Beside the peers, which are installed for it.
bench: setup
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python -m benchmarks.speed

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Into build/docs; needs no network. A warning is an error.
docs: setup
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --conf-dir docs . build/docs

# Into dist, from an empty folder: the archive of the sources and the wheel made from it.
dist: setup
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[release]"
	rm -rf dist
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf $(VENV) $(OLDEST) $(OLDEST_EXTRAS) build dist *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
