# Every target makes and reuses .venv by itself. PYTHON names the interpreter that a new .venv is made from.
PYTHON ?= python3
BIN := .venv/bin
# Two workers with one thread each: tests must not fight over the cores that training uses.
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 2 --dist loadscope
# Two workers with a node each; one cluster that is there already is for one.
E2E_WORKERS := $(if $(KUBECONFIG)$(FINETUNING_NODE),-n 0,-n 2 --dist loadfile --no-loadscope-reorder)
PACKAGES := $(wildcard */finetuning_*)

.DEFAULT_GOAL := help
.PHONY: bench e2e e2e-ready images e2e-images sbom help venv runtime quickstart test test-unit test-workload test-cluster cluster-binaries kueue-binaries mlflow cluster-up cluster-down kind-up kind-down lint types format crds docs stages clean

help: ## Show the targets.
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  \1|\2/' | column -t -s '|'

venv: ## Make .venv with everything that development needs.
	@PYTHON=$(PYTHON) hack/venv.sh dev

runtime: ## Make .venv with what `finetune run` needs, and no more.
	@PYTHON=$(PYTHON) hack/venv.sh local

quickstart: runtime ## Fine-tune, evaluate and report examples/quickstart.yaml on this machine.
	$(BIN)/finetune run examples/quickstart.yaml

test: test-unit test-workload test-cluster ## Run every test that needs no container runtime.

test-unit: venv ## Run the unit tests: no programs, no training.
	$(PYTEST) tests/unit

test-workload: mlflow ## Run the tests that run programs, servers and small models.
	@hack/test-deps.sh
	$(PYTEST) tests/workload

test-cluster: kueue-binaries ## Run the operator against a real control plane with fake nodes.
	$(PYTEST) tests/cluster

mlflow: venv ## Install the MLflow server that tests write to: a minute or two, once per machine.
	@$(BIN)/python -m hack.mlflow

cluster-binaries: venv ## Build etcd, kube-apiserver and so on: ten minutes, once per machine.
	@$(BIN)/python -m hack.cluster build

cluster-up: cluster-binaries ## Start a control plane with fake nodes on this machine; prints how to use it.
	@$(BIN)/python -m hack.cluster up

cluster-down: venv ## Stop it, without a trace.
	@$(BIN)/python -m hack.cluster down

kind-up: ## Start a kind cluster to try things in; `skaffold run` goes on from there.
	@hack/kind.sh up

kind-down: ## Remove it.
	@hack/kind.sh down

kueue-binaries: cluster-binaries ## Build Kueue: a few minutes, once per machine.
	@$(BIN)/python -m hack.cluster kueue-build

node-binaries: cluster-binaries ## Build kubelet, kube-proxy, CoreDNS and so on: five minutes more, once per machine.
	@hack/test-deps.sh node
	@$(BIN)/python -m hack.cluster node-build

node-up: node-binaries ## Start a cluster with one real node on this machine (root, Linux); prints how to use it.
	@$(BIN)/python -m hack.cluster node-up

node-down: venv ## Stop it, without a trace.
	@$(BIN)/python -m hack.cluster node-down

images: ## Build the images of the operator and of every program; `python -m hack.images --help` tells the settings.
	@$(PYTHON) -m hack.images build

e2e-images: ## Build the images that tests on a node load, where something changed; minutes, the first time.
	@hack/test-deps.sh images
	@$(PYTHON) -m hack.images archives

sbom: venv ## Write what is in the built images: build/sbom/<role>.cdx.json.
	@$(BIN)/python -m hack.images sbom

e2e-ready: node-binaries ## Build what `make e2e` runs: binaries of the node, and images; seconds where nothing changed.
	@mkdir -p build
	@hack/test-deps.sh images
	@$(PYTHON) -m hack.images archives > build/e2e-images.json

e2e: e2e-ready ## Install the chart on real nodes of this machine and run everything there; as root, a quarter of an hour.
	@rm -f build/e2e-record.md
	FINETUNE_E2E_IMAGES=build/e2e-images.json $(BIN)/python -m pytest tests/e2e $(E2E_WORKERS) --timeout 1200

bench: cluster-binaries ## Measure the operator and its progress endpoint; half an hour, on a quiet machine.
	$(BIN)/python -m bench.operator.bench_operator latency burst writes stored growth progress
	$(BIN)/python -m bench.progress.bench_progress

lint: venv ## Check style, types, floors, and that generated files are current.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory types
	$(BIN)/lint-imports
	$(BIN)/finetune crds --check
	$(BIN)/python -m hack.chart_readme --check
	$(BIN)/python -m hack.chart_schema --check
	$(BIN)/hadolint $(wildcard */Dockerfile) tests/e2e/site/Dockerfile

types: venv
	$(BIN)/mypy $(PACKAGES) bench hack tests examples

format: venv ## Put the code into the house style.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

crds: venv ## Write crds/*.yaml, the chart and docs/manifest-reference.md from the types and values.
	$(BIN)/finetune crds
	$(BIN)/python -m hack.chart_readme
	$(BIN)/python -m hack.chart_schema

docs: crds ## Write the generated pages of docs/.

stages: cluster-binaries ## Write what kubectl shows of a job in each stage into docs/kubectl.md; a minute.
	FINETUNING_WRITE_PAGE=1 $(BIN)/python -m pytest tests/cluster/test_stages_shown.py

clean: ## Remove .venv, caches and build outputs; keeps .finetuning, which holds your adapters.
	rm -rf .venv .venv.lock build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
