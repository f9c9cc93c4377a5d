# Everything a developer types. `make` alone lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
PROJECTS := contract agent server cli
PACKAGES := holdfast_contract holdfast_agent holdfast_server holdfast_cli
CODE := $(PROJECTS) tests requirements $(wildcard docs/*.py)

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: venv
venv: .venv/installed ## .venv with holdfast, holdfast-agent, holdfast-server and all tools

.venv/installed: requirements/dev.lock requirements/venv $(PROJECTS:%=%/pyproject.toml)
	@PYTHON=$(PYTHON) requirements/venv $(PROJECTS)
	@touch $@

.PHONY: demo
demo: venv ## the main job on real files: back up, change, restore, compare
	@$(BIN)/python tests/demo/run.py

.PHONY: test
test: venv ## every test, on two workers
	@requirements/system
	$(BIN)/pytest -n $(WORKERS) --dist loadfile

.PHONY: check
check: venv ## format, lint, types, imports, unit tests: under a minute
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy $(PACKAGES:%=-p %)
	$(BIN)/mypy --explicit-package-bases tests requirements $(wildcard docs/*.py)
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest -q -n $(WORKERS) --dist loadfile tests/unit

.PHONY: soak
soak: venv ## the long lanes: thousands of generated trees and kills
	@requirements/system
	$(BIN)/pytest -n $(WORKERS) --dist load -m soak --timeout 0 --hypothesis-profile soak

.PHONY: bench
bench: venv ## side by side with other backup programs; BENCH_TOOLS: their runner, BENCH_SETS: data sets
	tests/bench/run

.PHONY: bench-quick
bench-quick: venv ## has something become slower? ratios to the machine's own speed, two minutes
	$(BIN)/python tests/bench/quick.py

.PHONY: bench-micro
bench-micro: venv ## what each step costs by itself, beside the machine's limit; under a minute
	$(BIN)/python tests/bench/micro.py

.PHONY: lock
lock: venv ## write the lock files anew (UPGRADE=1 takes the newest versions)
	requirements/lock $(if $(UPGRADE),--upgrade)

.PHONY: clean
clean: ## remove what the other targets made
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find $(PROJECTS) tests docs requirements -name __pycache__ -prune -exec rm -rf {} +
