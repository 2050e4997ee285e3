# Needs Python 3.11 or 3.12, git and make; everything else is installed into .venv and .venv-vllm.
# `make demo` runs the main job to its end, `make test` passes the tests; each does the set-up first.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
PY := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup setup-main demo test test-fast test-compose faults fuzz-http sbom audit lint format docs clean

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

# The script looks at what the environments were made from; where nothing changed it is done in a moment.
setup: ## make both environments and convert the small model
	@$(PYTHON) deploy/setup_environments.py

setup-main:
	@$(PYTHON) deploy/setup_environments.py --only main

demo: setup ## a whole migration on this machine, no key and no GPU, to its end
	$(PY) -m llamaduo.cli.main demo

test: setup ## all tests, one small loop with real training and real vLLM among them
	$(PY) -m pytest -n 2 --dist loadfile tests/unit tests/contract tests/compose
	$(PY) -m pytest -n 2 --dist loadfile -m "not vllm and not training" tests/loop
	$(PY) -m pytest -m "vllm or training" tests/loop
	$(PY) -m pytest tests/faults
	$(PY) -m pytest tests/http_fuzz

test-fast: setup-main ## the tests that start no model and no container
	$(PY) -m pytest -n 2 --dist loadfile tests/unit tests/contract tests/compose

test-compose: setup-main ## the light services as real containers (needs docker, or root on Debian)
	$(PY) -m tests.compose.lane

faults: setup-main ## migrations under seeded faults of all kinds: make faults SEED=1 RUNS=20
	$(PY) -m tests.faults --seed $(or $(SEED),1) --runs $(or $(RUNS),3)

fuzz-http: setup-main ## made-up requests to each HTTP API: make fuzz-http SEED=7 REQUESTS=10000
	$(PY) -m tests.http_fuzz --seed $(or $(SEED),1) --requests $(or $(REQUESTS),10000)

sbom: setup-main ## a bill of materials of the environment (CycloneDX), checked to be whole
	$(PY) -m deploy.sbom .llamaduo/sbom.json

audit: setup-main ## known vulnerabilities in what is installed, where a list of them can be reached
	$(PY) -m deploy.audit

lint: setup-main ## ruff, mypy (strict) and the import rules
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports

format: setup-main ## let ruff mend what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: setup-main ## write docs/contract and the bus's users anew from the code
	$(PY) -m llamaduo.contract
	$(PY) -m deploy.nats.users
	$(PY) -m deploy.http_contract

clean: ## take the environments, the state folder and all caches away
	rm -rf .venv .venv-vllm .llamaduo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
