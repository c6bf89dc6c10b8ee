# Everything runs in .venv, which `make setup` builds from requirements.lock; needs Python >= 3.11.
PYTHON ?= python3
BIN := .venv/bin
# What using igpt needs, and what working on it needs besides.
BASE := .venv/.base
READY := .venv/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SHELL := /bin/bash

WORKS := train sample data probe start

.PHONY: demo test setup checks bench bench-check soak docs lock clean

demo: $(BASE)
	$(BIN)/igpt demo
	$(BIN)/igpt demo --train --resume

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow and not gpu"

soak: $(READY)
	$(BIN)/python -m pytest -m "slow" --durations=20

checks: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Our speed beside other projects'; what it writes is committed.
bench: $(READY)
	for work in $(WORKS) growth; do $(BIN)/igpt bench $$work --out benchmarks/$$work.json || exit 1; done

# Fails if a ratio to a peer (not seconds: machines differ) is much lower than the committed one.
bench-check: $(READY)
	for work in $(WORKS); do $(BIN)/igpt bench $$work --check benchmarks/$$work.json || exit 1; done

# The site, in site/: every warning is an error; the variable silences an advertisement.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

setup: $(READY)

$(BASE): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("igpt needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": run `make PYTHON=python3.12`" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --constraint requirements.lock setuptools
	$(PIP) --constraint requirements.lock --no-build-isolation -e .
	touch $@

$(READY): $(BASE)
	$(PIP) -r requirements.lock
	touch $@

# Writes the lock anew from what .venv holds; the CPU build's mark is cut so that any build fits.
lock:
	$(BIN)/python -m pip freeze --all --exclude pip --exclude igpt | sed 's/+cpu//; /^-e /d; /^# /d' > requirements.lock

clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find igpt tests -name __pycache__ -prune -exec rm -rf {} +
