# make demo: pretrain, interrupt, resume, sample, export, report; make test: the suite. Both make their environment, of
# the versions in the lock.

SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
LOCK := .ci/requirements.lock
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(LOCK)
# On Linux PyPI's torch brings gigabytes of CUDA; the name of the build without them is its own.
TORCH = torch==$(shell sed -n 's/^torch==\([0-9.]*\).*/\1/p' $(LOCK))$(if $(filter Linux,$(shell uname)),+cpu)
# The version for that torch; where it goes and why: benchmarks/torchvision_import.py.
TORCHVISION := torchvision==0.28.0
COMPILERS := .cache/compilers
COMPILERS_LOCK := .ci/compilers.lock
PIP_COMPILERS := $(subst $(BIN),$(COMPILERS)/bin,$(PIP)) --constraint $(COMPILERS_LOCK)
LAUNCHERS := .cache/launchers
CLIENTS := .cache/clients
STORES := .cache/stores
FUZZ_SECONDS ?= 600
KILLS ?= 200
FAULTS := .cache/faults

.PHONY: demo test slow compiled launchers stores clients faults fuzz mutations lint format schema docs bench lock newest clean

demo: .venv/installed
	$(BIN)/python -m launch.demo

test: .venv/oracles
	$(BIN)/python -m pytest -n auto --dist loadfile

# Compiled as users' programs are; `make test` compiles quickly (tests/conftest.py).
slow: .venv/oracles
	XLA_FLAGS= $(BIN)/python -m pytest -m slow

# The tests that compile for H200 and TPU, in an environment of their own: compilers and cuDNN take 3 GB, and with CUDA
# packages beside it JAX would look for a GPU in every other test.
compiled: $(COMPILERS)/installed
	$(COMPILERS)/bin/python -m pytest -m 'compilers and not slow' $$(grep -rl --include='test_*.py' 'mark\.compilers' tests)

# Rendered jobs for real: in a SLURM of one node (Debian: slurmctld slurmd slurm-client munge; skipped where they are not
# installed or the user is not root), and against the schemas of Kubernetes and SkyPilot, in an environment of their own.
launchers: .venv/testing
	test -x $(LAUNCHERS)/bin/python || $(PYTHON) -m venv $(LAUNCHERS)
	$(LAUNCHERS)/bin/python -m pip install --quiet --disable-pip-version-check kubernetes-validate==1.37.0 skypilot==0.14.1
	XLA_FLAGS= $(BIN)/python -m pytest -m slow -rs tests/runs/test_launchers.py tests/runs/test_slurm.py

# Checkpoints in object stores, on a server on loopback that speaks S3 (docs/reference/testing.md).
stores: .venv/testing
	test -x $(STORES)/bin/python || $(PYTHON) -m venv $(STORES)
	$(STORES)/bin/python -m pip install --quiet --disable-pip-version-check 'moto[s3]==5.2.5' flask==3.1.3 flask-cors==6.0.5
	XLA_FLAGS= $(BIN)/python -m pytest -m "slow or not slow" -rs tests/maverick_jax/checkpoint tests/runs/test_copies_killed.py

# Real clients of `maverick serve`, each in an environment of its own.
clients: .venv/testing
	for client in openai2:'openai>=2,<3' openai3:'openai>=3,<4' langchain:'langchain langchain-openai' \
			llamaindex:llama-index-llms-openai-like; do \
		test -x $(CLIENTS)/$${client%%:*}/bin/python || $(PYTHON) -m venv $(CLIENTS)/$${client%%:*}; \
		$(CLIENTS)/$${client%%:*}/bin/python -m pip install --quiet --disable-pip-version-check $${client#*:} || exit 1; \
	done
	XLA_FLAGS= $(BIN)/python -m pytest -m slow -rs tests/runs/test_clients.py

# Faults in whole runs (docs/reliability.md): every test of them, with the times they took, then KILLS kills of random
# processes on changing topologies. SEED=N draws others.
faults: .venv/testing
	mkdir -p $(FAULTS) && rm -f $(FAULTS)/times.jsonl
	XLA_FLAGS= FAULTS_RECORD=$(CURDIR)/$(FAULTS)/times.jsonl $(BIN)/python -m pytest -m '' tests/faults
	$(BIN)/python -m tests.helpers.killing --kills $(KILLS) --seed $(or $(SEED),0) --out $(FAULTS)/kills.json

# What reads foreign data, on malformed data (docs/reference/safety.md). FUZZ="SEED TARGET ..." repeats one.
fuzz: .venv/testing
	$(BIN)/python -m tests.fuzzing $(FUZZ_SECONDS) $(FUZZ)

# Makes each mistake of tests/mutations/table.py in a copy of the tree: its tests must fail. MUTATIONS="A1 B2" runs some.
mutations: .venv/oracles
	$(BIN)/python -m tests.mutations $(MUTATIONS)

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

bench: .venv/oracles
	$(BIN)/python benchmarks/run_all.py

# Writes the lock: the newest of all that pyproject.toml admits. CONTRIBUTING.md says when. The lock of the compilers
# has what they need beside the versions of the first.
lock: .cache/uv/bin/uv
	.cache/uv/bin/uv pip compile --quiet pyproject.toml --output-file $(LOCK)
	.cache/uv/bin/uv pip compile --no-config --quiet --extra compilers --constraint $(LOCK) --universal \
		--python-version 3.11 --upgrade --annotation-style line --custom-compile-command 'make lock' pyproject.toml \
		| grep -E '^(#|jax-cuda|libtpu|nvidia)' > $(COMPILERS_LOCK)

# The suite with the newest of everything, whatever pyproject.toml admits, in an environment of its own.
# PYTHON=python3.13 make newest: recent JAX is not to be had for Python 3.11.
newest:
	$(PYTHON) .ci/newest.py

clean:
	rm -rf .cache build dist *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml $(LOCK)
	$(PIP) setuptools
	$(PIP) --no-build-isolation -e .
	touch $@

.venv/testing: .venv/installed
	$(PIP) -e .[test,docs]
	touch $@

.venv/docs: .venv/installed
	$(PIP) -e .[docs]
	touch $@

$(COMPILERS)/installed: pyproject.toml $(LOCK) $(COMPILERS_LOCK)
	test -x $(COMPILERS)/bin/python || $(PYTHON) -m venv $(COMPILERS)
	$(PIP_COMPILERS) setuptools
	$(PIP_COMPILERS) --no-build-isolation -e .[compilers] hypothesis pytest pytest-xdist
	touch $@

# Tried again each time that it failed: the tests which need it are skipped until then.
.venv/oracles: .venv/testing
	@if $(PIP) $(TORCH); then \
		$(PIP) -e .[oracles] && $(PIP) --upgrade --no-deps --target .cache/torchvision $(TORCHVISION) && touch $@; \
	else echo "No $(TORCH) for this Python here: tests that" \
		"compare with PyTorch are skipped. To run them: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test" >&2; \
	fi

.cache/uv/bin/uv:
	$(PYTHON) -m venv .cache/uv
	.cache/uv/bin/python -m pip install --quiet --disable-pip-version-check uv
