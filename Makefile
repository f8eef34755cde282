# The words of the project; CI, README and people use the same ones. `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
# Bytecode is written, also where the surroundings forbid it: each stage is a process that imports 3,000 modules, and
# compiling them anew takes as long as importing them.
export PYTHONDONTWRITEBYTECODE :=

PYTHON ?= python3
BIN := .venv/bin
RIG := $(BIN)/python tests/cluster/rig/rig.py

.PHONY: help
help: ## List these words
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

# --- The ground: one virtual environment from hashed locks -------------------------------------------------------

.venv/.uv: requirements/uv.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "KubeDistill needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	touch $@

.venv/.trainer: requirements/trainer.txt pyproject.toml .venv/.uv
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --require-hashes -r requirements/trainer.txt
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --editable .
	touch $@

.venv/.dev: requirements/dev.txt pyproject.toml .venv/.uv
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --require-hashes -r requirements/dev.txt
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --editable .
	touch $@

.PHONY: install
install: .venv/.dev ## Everything a developer needs, into .venv

.PHONY: lock
lock: .venv/.uv ## Resolve the dependencies again and write the hashed locks
	requirements/lock.sh

.PHONY: generate
generate: .venv/.dev ## Write what is generated: the CRD, the chart's copy of it, the field reference
	$(BIN)/python -m kubedistill_api.crd > crds/distillationjobs.yaml
	cp crds/distillationjobs.yaml charts/kubedistill/files/
	$(BIN)/python docs/generate.py

# --- Without a cluster -------------------------------------------------------------------------------------------

.PHONY: demo
demo: .venv/.trainer ## A distilled student on this machine, no cluster: about eight minutes on two cores
	$(BIN)/python examples/models/fetch_smollm2.py
	$(BIN)/kubedistill run examples/01-quickstart.yaml

.PHONY: check
check: .venv/.dev ## Format, lint, types, import layers, drift and unit tests: under two minutes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto -m "not slow and not s3 and not vllm and not cluster and not gpu" # a core for each

.PHONY: bench
bench: .venv/.dev ## What losses, steps and stored data cost, into bench.json; 14 GiB of free memory, a quiet machine
	$(BIN)/python examples/models/fetch_smollm2.py
	$(BIN)/python tests/bench

.PHONY: gpu
gpu: .venv/.dev ## What a GPU does otherwise, on a machine that has one: about two minutes
	$(BIN)/pytest -m gpu

# --- With a real Kubernetes --------------------------------------------------------------------------------------

.PHONY: cluster
cluster: .venv/.dev ## A real Kubernetes on this machine (with KUBECONFIG set only its tools are built)
	$(RIG) build
	test -n "$${KUBECONFIG:-}" || $(RIG) up

.PHONY: cluster-down
cluster-down: .venv/.dev ## Stop it and leave nothing but the cache
	$(RIG) down

.PHONY: images
images: .venv/.dev ## Build the images and load them into the cluster
	tests/cluster/images.sh

.PHONY: demo-cluster
demo-cluster: cluster images ## Helm install, kubectl apply, wait, show
	$(BIN)/python tests/cluster/demo.py

.PHONY: e2e
e2e: .venv/.dev cluster images ## The end-to-end jobs, against KUBECONFIG or the cluster of this machine
	$(BIN)/pytest -m cluster tests/cluster/e2e

.PHONY: test
test: .venv/.dev check ## Everything: make check, the tests of minutes, an API server, whole jobs on a cluster
	$(RIG) build
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile -m "slow or s3 or vllm or cluster"
