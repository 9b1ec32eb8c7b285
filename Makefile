# `make help` lists the targets. Each makes .venv on first use, and again when its inputs change.

# 3.11 first: it is what is tested. Another one that is new enough will do: make PYTHON=python3.13
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$python; break; }; done)

# More arguments for pip. On Linux the package index's PyTorch is for CUDA and takes several GB;
# PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" takes the small one.
PIP_ARGS ?=
PYTEST_ARGS ?=
# Most tests wait for processes, so a few at a time finish sooner; 0 runs them one after the other.
TEST_PROCESSES ?= 3
BENCH ?= plumbing
BENCH_ARGS ?=
MINUTES ?= 20
SOAK_ARGS ?=

BIN := .venv/bin
# Written last, so that an installation that broke off is done again.
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint types docs bench soak clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

demo: $(INSTALLED) ## watch sentences travel through an embedded Redis and a real model
	$(BIN)/golem demo

test: $(INSTALLED) ## run every test (PYTEST_ARGS="tests/unit -k batcher" for some)
	$(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile $(PYTEST_ARGS)

lint: $(INSTALLED) ## check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(INSTALLED) ## check the type hints
	$(BIN)/mypy

# The variable silences Material's notice of what will come after MkDocs 1.
docs: $(INSTALLED) ## build docs/ into site/, which needs no network; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Open site/index.html; its search wants a server: python3 -m http.server --directory site"

bench: $(INSTALLED) ## run a benchmark and print JSON (BENCH=plumbing, BENCH_ARGS=...)
	$(BIN)/python -m benchmarks.$(BENCH) $(BENCH_ARGS)

soak: $(INSTALLED) ## random kills, hangs and resets for MINUTES=20; fails if a promise is broken
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) $(SOAK_ARGS)

clean: ## remove caches and build output
	rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove .venv and Debian's redis-server too
	rm -rf .venv .debian-redis

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Golem needs Python 3.11 or newer: install one, or name it with make PYTHON=/path/to/python." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable ".[worker,embedded,dev,bench,examples,docs]"
	touch $@
