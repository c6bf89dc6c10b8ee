# Everything runs in .venv, which `make setup` builds from the locks; needs Python >= 3.11.
PYTHON ?= python3
BIN := .venv/bin
# What using igpt needs, and what working on it needs besides.
BASE := .venv/.base
READY := .venv/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SHELL := /bin/bash

# Pythons that `make matrix` tries, each in an environment of its own; what is not there is skipped.
PYTHONS := 3.11 3.12 3.13

.PHONY: demo test setup base checks audit bench bench-check soak chain docs matrix lock clean

demo: $(BASE)
	$(BIN)/igpt demo
	$(BIN)/igpt demo --train --resume

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow and not gpu"

soak: $(READY)
	$(BIN)/python -m pytest -m "slow" --durations=20
	@$(MAKE) --no-print-directory chain

# The paper's chain on a small ImageNet, each step by one process and by two, and after a kill.
chain: $(READY)
	$(BIN)/python benchmarks/chain.py

checks: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@$(MAKE) --no-print-directory audit

# Known faults of what the locks pin; without a network that is said, and nothing fails.
audit: $(READY)
	@for lock in requirements-base.lock requirements.lock; do \
	  told=$$(timeout 120 $(BIN)/pip-audit --progress-spinner off --disable-pip --require-hashes -r $$lock 2>&1); status=$$?; \
	  case "$$told" in *"No known vulnerabilities"*) echo "$$lock: no known faults" ;; \
	  *GHSA-*|*PYSEC-*|*CVE-*) echo "$$told"; exit 1 ;; \
	  *) echo "$$lock: not checked for known faults: their list cannot be reached (status $$status)" ;; esac; done

# Our speed beside other projects', into benchmarks/KIND OF MACHINE/, which is committed.
bench: $(READY)
	$(BIN)/igpt bench all --out benchmarks
	$(BIN)/igpt bench growth --out benchmarks

# Fails if a ratio to a peer is much lower than the one committed for this kind of machine.
bench-check: $(READY)
	$(BIN)/igpt bench all --check benchmarks

# The site, in site/: every warning is an error; the variable silences an advertisement.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

setup: $(READY)

base: $(BASE)

# torch's build for CPUs where the package index has one, else its own: on Linux some gigabytes for
# NVIDIA's cards (docs/howto/machines.md).
$(BASE): requirements-base.lock requirements-torch.lock requirements-torch-cpu.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("igpt needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": run `make PYTHON=python3.12`" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(dir $(BASE))
	@($(PIP) --require-hashes -r requirements-base.lock -r requirements-torch-cpu.lock 2>$(dir $(BASE))pip.log && $(BIN)/python -c 'import torch' 2>/dev/null) || \
	  { echo "no build of torch for CPUs alone is found: taking the package index's own, which may be large"; \
	    $(PIP) --require-hashes -r requirements-base.lock -r requirements-torch.lock; }
	$(PIP) --no-deps --no-build-isolation -e .
	touch $@

$(READY): $(BASE) requirements.lock
	$(PIP) --require-hashes -r requirements.lock
	touch $@

# Quick tests with each Python that is here, in environments of their own.
matrix:
	for python in $(PYTHONS); do \
	  if command -v python$$python >/dev/null && python$$python -c 'import sys' 2>/dev/null; then \
	    $(MAKE) test PYTHON=python$$python BIN=.venv-$$python/bin BASE=.venv-$$python/.base READY=.venv-$$python/.ready || exit 1; \
	  else echo "python$$python is not here: skipped"; fi; done

# Writes the locks anew, with the versions that they have; `tools/lock.py --upgrade` takes newer ones.
lock: $(READY)
	$(PIP) uv
	PATH="$$PWD/$(BIN):$$PATH" $(BIN)/python tools/lock.py

clean:
	rm -rf .venv .venv-* build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find igpt tests -name __pycache__ -prune -exec rm -rf {} +
