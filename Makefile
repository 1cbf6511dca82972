# make demo: pretrain, interrupt, resume, sample, export, report; make test: the suite. Both make their environment.

SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
FUZZ_SECONDS ?= 600

.PHONY: demo test slow fuzz lint format schema docs bench clean

demo: .venv/installed
	$(BIN)/python -m launch.demo

test: .venv/testing
	$(BIN)/python -m pytest -n auto --dist loadfile

# Compiled as users' programs are; `make test` compiles quickly (tests/conftest.py).
slow: .venv/testing
	XLA_FLAGS= $(BIN)/python -m pytest -m slow

# What reads foreign data, on malformed data (docs/reference/safety.md). FUZZ="SEED TARGET ..." repeats one.
fuzz: .venv/testing
	$(BIN)/python -m tests.fuzzing $(FUZZ_SECONDS) $(FUZZ)

lint: .venv/testing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/testing
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What editors check configs against; a test fails while it is out of date.
schema: .venv/installed
	$(BIN)/maverick config schema > configs/schema.json

# The documentation site, into build/docs; a broken link is an error.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/site/mkdocs.yml

bench: .venv/testing
	$(BIN)/python benchmarks/run_all.py

clean:
	rm -rf .cache build dist *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	$(PIP) -e .
	touch $@

# torch first and alone: it then satisfies transformers without gigabytes of CUDA where a CPU build is to be had
# (elsewhere: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test).
.venv/testing: .venv/installed
	$(PIP) torch==2.13.0
	$(PIP) -e .[test]
	touch $@

.venv/docs: .venv/installed
	$(PIP) -e .[docs]
	touch $@
