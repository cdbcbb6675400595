# `make` or `make help` lists the targets. Everything is installed into .venv; outside this folder, only the caches of
# pip and of converted models are written.

# The first Python of 3.11 or later. Another one: make PYTHON=/path/to/python3.12
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$python && break; done)
BIN := .venv/bin
EXTRAS := .[dev]
# Pinned apart from the rest, because `make lock` would take the newest: a CPU wheel of it that pip can find
# (PIP_FIND_LINKS) counts as this version and goes first; without one pip brings gigabytes of CUDA.
TORCH := 2.13.0

.DEFAULT_GOAL := help
.PHONY: help run test browser clip-demo faults extras bench dev lint lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: .venv/installed ## example data, two pipelines, three searches
	$(BIN)/embedding-pipelines example
	$(BIN)/embedding-pipelines run stdlib unicode
	$(BIN)/embedding-pipelines search stdlib "copy a file and keep its timestamps" -k 3
	$(BIN)/embedding-pipelines search unicode "smiling cat" -k 5
	$(BIN)/embedding-pipelines search stdlib "parse command line options" --filter "module = 'argparse'" -k 3

test: .venv/installed ## the whole test suite
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile -m "not alone and not browser"
	$(BIN)/python -m pytest -m alone

browser: .venv/installed ## the search page in Chromium, which has to be installed
	$(BIN)/python -m pytest -m browser

clip-demo: .venv/installed ## images from bucket to bucket on a loopback S3 server; MODEL=openai/clip-vit-base-patch32
	@$(BIN)/python -m scripts.clip_demo $(MODEL)

faults: .venv/installed ## faults of disk and store, kills, random sequences, damages: four minutes
	$(BIN)/python -m embedding_pipelines_tests.faults.sweep 60 --command 6
	$(BIN)/python -m embedding_pipelines_tests.faults.store_sweep 10
	$(BIN)/python -m embedding_pipelines_tests.faults.sequences 40
	$(BIN)/python -m embedding_pipelines_tests.faults.damage 30
	$(BIN)/python -m embedding_pipelines_tests.faults.damage 30 --flips
	$(BIN)/python -m embedding_pipelines_tests.faults.fuzz 400
	$(BIN)/python -m embedding_pipelines_tests.faults.images 40
	$(BIN)/python -m embedding_pipelines_tests.faults.two_writers 30

extras: .venv/installed ## each part of the installation alone: 20 minutes; some of them: make extras TRY="core report"
	$(BIN)/python scripts/try_extras.py $(TRY)

bench: .venv/installed ## beside its peers: an hour, and 2 GB of them in .venv
	@$(BIN)/python -m pip install -qq -c constraints.txt -e '.[dev,bench]'
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.engine --beside int8
	$(BIN)/python -m benchmarks.search

dev: .venv/installed ## Dagster's web interface and daemon over all pipelines
	DAGSTER_HOME="$$($(BIN)/python -m embedding_pipelines.orchestration.instance)" && export DAGSTER_HOME && \
	exec $(BIN)/dagster dev -w workspace.yaml

lint: .venv/installed ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: ## make constraints.txt again: the newest versions that pyproject.toml allows
	@$(call require_python)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
		echo "The oldest Python served decides: make lock PYTHON=python3.11" >&2; exit 1; }
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/pip uninstall --quiet --yes setuptools
	@echo "Installing the newest versions into build/lock: a few minutes."
	build/lock/bin/pip install -qq torch==$(TORCH) -e '$(EXTRAS)'
	sed '/^#/!d' constraints.txt > build/constraints.txt
	build/lock/bin/pip freeze --all --exclude pip --exclude-editable | \
		grep -E '^[A-Za-z0-9._-]+==' | grep -v -i -E '^(nvidia|cuda|triton)' | \
		sed -E 's/\+.*//' | LC_ALL=C sort -f >> build/constraints.txt
	mv build/constraints.txt constraints.txt
	rm -rf build/lock

clean: ## remove .venv, build products and caches; data/ stays
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find embedding_pipelines embedding_pipelines_tests -name __pycache__ -prune -exec rm -rf {} +

.venv/installed: pyproject.toml constraints.txt
	@$(call require_python)
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv: a few minutes the first time ..."
	@$(BIN)/python -m pip install -qq --no-compile -c constraints.txt -e '$(EXTRAS)'
	@# On all cores, which pip does not; some packages hold templates that are no Python.
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib >/dev/null || true
	@$(BIN)/python -c 'import sys; print("Installed for Python", sys.version.split()[0])'
	@touch $@

define require_python
	if [ -z "$(PYTHON)" ]; then \
		echo "No Python 3.11 or later found. Install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; \
	elif ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo "$(PYTHON) is older than Python 3.11. Name another: make PYTHON=/path/to/python3.12" >&2; exit 1; \
	elif ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: sudo apt install python3-venv" >&2; \
		exit 1; \
	fi
endef
