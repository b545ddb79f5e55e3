.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9

.PHONY: help install demo test test-slow test-fast lint format typecheck check compile lock clean

help: ## List every target
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  %-12s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## Install the pinned dependencies and Lockstep into .venv

$(VENV)/.installed: requirements.lock setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: install ## Train, embed, index, deploy and query on generated data, offline
	$(BIN)/lockstep run --config configs/demo.toml
	@echo; echo '# a known playlist, by its embedding in the store'
	$(BIN)/lockstep query --entity playlist-7 -k 5 --new-only
	@echo; echo '# the same, within one genre'
	$(BIN)/lockstep query --entity playlist-7 -k 5 --new-only --restrict genre=jazz
	@echo; echo '# a playlist that nobody has seen, by its title (words of jazz): embedded now'
	$(BIN)/lockstep query --features '{"title": "smoke velvet lounge"}' -k 5

test: install ## Run every test, the files spread over up to four processes
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: install ## Run what takes minutes: real data, and a run killed in each step
	$(BIN)/pytest -m slow tests/e2e

test-fast: install ## Run the tests that run no whole pipeline
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile -m "not e2e and not slow"

lint: install ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint test ## Everything that CI runs

compile: install ## Compile the pipeline of configs/demo.toml to build/train_and_deploy.yaml
	$(BIN)/lockstep compile --config configs/demo.toml --output build/train_and_deploy.yaml

lock: ## Resolve setup.py anew into requirements.lock
	$(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-package lockstep-retrieval \
		--extra gcp --extra baselines --extra dev setup.py --output-file requirements.lock

clean: ## Remove the environment and everything generated
	rm -rf $(VENV) build dist *.egg-info lockstep-root .mypy_cache .ruff_cache .pytest_cache .hypothesis
