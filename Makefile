# Every command a person types. `make` alone lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCAL := $(BIN)/python tests/cluster/local.py
# Suites whose files run beside each other; those on the local cluster and those that do harm run alone.
FAST := tests/crds tests/operator tests/contract tests/cli tests/trainer
BESIDE := $(FAST) tests/chart tests/gitops tests/api_server tests/optin
PYTEST := $(BIN)/pytest -q
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
# Two suites at once: with more threads than cores they wait for one another's, and take five times as long.
export OMP_NUM_THREADS := 1
# Threads that wait in a busy loop would take the cores that the other suite computes on.
export OMP_WAIT_POLICY := PASSIVE
# Without compiled files, each of the many processes that tests start would compile torch anew, for a quarter of a minute.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup generate verify lint format test-fast test test-api test-cluster test-lifecycle test-faults test-image bench-trainer bench-trainer-gpu bench-operator demo cluster-up cluster-down images corpus lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: $(VENV)/.installed ## a virtual environment with everything that development and tests need

$(VENV)/.installed: tests/requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install -q uv==0.13.9
	$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r tests/requirements.txt
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e . && touch $@

generate: setup ## write the CRDs, REFERENCE.md, the chart's schema and rules, and manifests/install.yaml
	$(BIN)/python -m mark_crds.generate
	$(BIN)/python -m mark_operator.generate

verify: setup ## what CI checks without running anything: generated files, lint, types, import contracts
	$(BIN)/python -m mark_crds.generate --check
	$(BIN)/python -m mark_operator.generate --check
	$(BIN)/ruff check -q . && $(BIN)/mypy && $(BIN)/lint-imports --no-logo 2>&1 | tail -n 3

format: setup ## format the sources
	$(BIN)/ruff format -q . && $(BIN)/ruff check -q --fix .

test-fast: setup ## the daily loop: no cluster, under a minute
	$(PYTEST) $(PARALLEL) -m "not slow" $(FAST)

test-api: setup ## every rule and the operator's passes on a real API server
	$(PYTEST) $(PARALLEL) tests/api_server tests/optin

test-cluster: cluster-up images corpus ## whole runs on the local cluster
	$(PYTEST) -m "not lifecycle" tests/cluster

test-lifecycle: setup ## the local cluster itself: start, stop, unclean stop (takes the cluster away meanwhile)
	$(PYTEST) -m lifecycle tests/cluster

test-faults: setup ## every write of every story lost or fatal, watches in trouble, partitions, lies, wrong specs (hours, on two cores)
	MARK_FAULTS=whole $(PYTEST) -n 2 --dist load tests/faults

test-image: setup ## the trainer's tests inside the trainer's image, as an ordinary user on a read-only root
	$(BIN)/python tests/cluster/image_tests.py

test: verify cluster-up images corpus ## everything, with whole runs on the local cluster
	$(PYTEST) $(PARALLEL) $(BESIDE)
	$(BIN)/python tests/cluster/image_tests.py
	$(PYTEST) $(PARALLEL) tests/faults
	$(PYTEST) -m "not lifecycle" tests/cluster

bench-trainer: setup ## the trainer beside TRL, transformers, pypdfium2 and plain generation, as ratios (about a quarter of an hour)
	$(BIN)/python tests/bench/trainer_ratios.py

bench-trainer-gpu: setup ## LoRA on an 8B shape on one GPU, beside the published number
	$(BIN)/python tests/bench/trainer_gpu.py

SIZE ?= 100 1000 5000
bench-operator: setup ## the operator's speed beside a bare client's, for crowds of SIZE runs (5000: about half an hour)
	PYTHONPATH=tests/beds $(BIN)/python tests/bench/operator_speed.py $(SIZE)

demo: setup ## the main job from nothing: cluster, operator, a plan, its confirmation, training, the report
	$(BIN)/python tests/cluster/demo.py

cluster-up: setup ## start the local cluster (the first time builds Kubernetes, about ten minutes)
	$(LOCAL) up

cluster-down: setup ## stop the local cluster and remove its traces
	$(LOCAL) down

images: setup cluster-up ## build the operator's and the trainer's images and load them into the local cluster
	$(LOCAL) images

corpus: setup ## render the corpus of real licence texts as PDF into build/corpus
	$(BIN)/python tests/corpus/render.py --out build/corpus

LOCK := $(BIN)/uv pip compile -q pyproject.toml --generate-hashes --no-header --no-annotate --upgrade --python-platform x86_64-unknown-linux-gnu
lock: setup ## resolve the pinned requirement files anew
	$(LOCK) --extra operator --extra gateway --python-version 3.13 -o operator/requirements.txt
	$(LOCK) --extra operator --extra gateway --extra trainer --extra distributed --extra dev --python-version 3.11 -o tests/requirements.txt
	echo "torch; sys_platform == 'never'" > build/no-torch.txt && $(LOCK) --extra trainer --override build/no-torch.txt --python-version 3.13 -o trainer_image/requirements-cpu.txt
	$(LOCK) --extra trainer --extra distributed --python-version 3.13 -o trainer_image/requirements-gpu.txt

clean: ## remove what was built in this checkout
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
