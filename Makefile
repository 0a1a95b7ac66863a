# Two commands matter: `make demo` and `make test`. Both install what they need into .venv first.
VENV     := .venv
BIN      := $(VENV)/bin
PEERS    := .venv-peers
PYTHON   ?= $(shell command -v python3.11 || command -v python3)
RESULTS  := results
SUITES   := demo_mmlu,demo_gsm8k,demo_humaneval
PYTEST_ARGS ?=

.PHONY: help setup demo demo-check bench-demo real test test-peers check docs constraints clean
.DEFAULT_GOAL := help

help:
	@echo "make setup       create .venv and install the pinned dependencies"
	@echo "make demo        run the embedded benchmarks on the embedded checkpoint, then serve the dashboard on 127.0.0.1:8501"
	@echo "make demo-check  the same, but stop the dashboard once it is healthy"
	@echo "make real        fetch a real model of 135 million parameters (93 MB), look inside it, measure it, run its tests"
	@echo "make test        run all tests (PYTEST_ARGS adds arguments for pytest)"
	@echo "make test-peers  compare activations and probes with TransformerLens, installed into .venv-peers"
	@echo "make check       run ruff and mypy, and check that the generated docs are up to date"
	@echo "make docs        write docs/hooks.md, cli.md, probes.md and checkpoints.md from the code"
	@echo "make constraints write constraints.txt from the versions in .venv"
	@echo "make clean       remove caches and results, but not .venv"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# With these stamp files a second run takes milliseconds; a changed pin or dependency makes them out of date.
$(VENV)/.installed-app: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing the pinned dependencies into $(VENV); the first time takes a few minutes"
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[app,eval,formats]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing the pinned dependencies of the tests into $(VENV)"
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed-app

setup: $(VENV)/.installed-app
	@tools/system-package.sh bubblewrap

bench-demo: setup
	$(BIN)/workbench eval run --model demo --tasks $(SUITES) --output $(RESULTS)/demo

demo: bench-demo
	$(BIN)/workbench app --results $(RESULTS)

demo-check: bench-demo
	$(BIN)/workbench app --results $(RESULTS) --check

real: $(VENV)/.installed-dev
	$(BIN)/workbench fetch smollm2
	$(BIN)/workbench generate smollm2 "The capital of France is" --max-new-tokens 12
	$(BIN)/workbench probe massive --model smollm2 --prompt "The capital of France is"
	$(BIN)/workbench eval run --model smollm2 --tasks demo_mmlu --limit 40 --output $(RESULTS)/smollm2
	$(BIN)/python -m pytest -m real $(PYTEST_ARGS)

test: $(VENV)/.installed-dev
	@tools/system-package.sh bubblewrap
	@PYTHON=$(BIN)/python tools/system-package.sh chromium
	$(BIN)/python -m pytest $(PYTEST_ARGS)

$(PEERS)/.installed: tests/peers/requirements.txt pyproject.toml constraints.txt
	@echo "installing TransformerLens into $(PEERS); the first time takes a few minutes"
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install -qq -r tests/peers/requirements.txt -e '.[probe]'
	@touch $@

test-peers: $(PEERS)/.installed
	$(PEERS)/bin/python -m pytest tests/peers $(PYTEST_ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tools/docs.py --check

docs: $(VENV)/.installed-dev
	$(BIN)/python tools/docs.py

constraints: $(VENV)/.installed-dev
	$(BIN)/python tools/constraints.py

clean:
	rm -rf $(RESULTS) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
