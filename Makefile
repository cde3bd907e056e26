# Every command a developer or a visitor needs. `make` alone lists them.
#
# A target first brings the machine to where it can run: missing Debian packages (as root, or with sudo),
# the virtual environment in build/venv, pinned PyPI packages, the native build. Each step leaves a stamp
# in build/ and is not repeated until what it depends on changes.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := build/venv
BIN := $(VENV)/bin
REQUIREMENTS := $(sort $(wildcard requirements/*.txt))
BINDING := vcuda/_abi.abi3.so
BINDING_SOURCES := setup.py native/binding.py native/include/vcuda/abi.h native/include/vcuda/abi_check.h \
	native/shim/sys.h native/shim/lock.h $(wildcard native/shim/ledger*.[ch]) native/shim/grant.h native/shim/grant.c \
	$(wildcard native/shim/bucket.[ch] native/shim/plan.[ch])
PROTOCOL := deviceplugin/_proto/__init__.py
C_SOURCES = $(shell git ls-files 'native/*.c' 'native/*.h')
PYTHON_SOURCES = vcuda deviceplugin admission tests tools native setup.py $(wildcard demo)

export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: setup ## Three shares of one simulated V100, a real CUDA client in each
	@$(BIN)/python -m demo

.PHONY: demo-cluster
demo-cluster: setup ## Pods in shares of simulated cards on a real Kubernetes, all on this machine
	@$(BIN)/python -m demo.cluster

.PHONY: test
test: setup lint ## All checks and tests; K=name for some of them
	@$(BIN)/python -m pytest $(if $(K),-k '$(K)') $(ARGS)

.PHONY: bench
bench: setup ## What each part costs, and how exact core shares are: tables, JSON and plots in build/bench
	@$(MAKE) -C native bench
	@$(BIN)/python -m tools.bench_webhook --json build/bench/webhook.json
	@$(BIN)/python -m tools.bench_placing | tee build/bench/placing.json
	@$(BIN)/python -m tools.bench_allocate | tee build/bench/allocate.json
	@$(BIN)/python -m tools.bench_cluster | tee build/bench/cluster.json
	@$(BIN)/vcuda bench cores --json build/bench/cores.json --plot build/bench/cores.png

.PHONY: soak
soak: setup ## The long runs: 10,000 kills, 60 s of racing, 10 million fuzzed inputs
	@$(BIN)/python -m pytest tests --soak $(if $(K),-k '$(K)') $(ARGS)

.PHONY: lint
lint: setup ## Formatting, types, imports and spelling; changes nothing
	@ruff check --quiet $(PYTHON_SOURCES)
	@ruff format --check --quiet $(PYTHON_SOURCES)
	@basedpyright --level error > build/pyright.log || { cat build/pyright.log; exit 1; }
	@lint-imports --no-logo > build/imports.log 2>&1 || { cat build/imports.log; exit 1; }
	@codespell
	@clang-format --dry-run --Werror $(C_SOURCES)
	@tools/tidy.sh
	@echo "lint: ruff, pyright, import-linter, codespell, clang-format, clang-tidy: clean"

.PHONY: format
format: setup ## Rewrite Python and C in the project's format
	@ruff check --quiet --fix $(PYTHON_SOURCES) || true
	@ruff format --quiet $(PYTHON_SOURCES)
	@clang-format -i $(C_SOURCES)

.PHONY: dev
dev: setup ## Everything a developer needs, commit hooks included
	@pre-commit install
	@echo "dev: ready; 'source $(BIN)/activate' puts vcuda and the tools on your PATH"

.PHONY: wheel
wheel: setup ## A manylinux2014 wheel in dist/
	@$(BIN)/python -m build --wheel --no-isolation --outdir dist . > build/wheel.log 2>&1 || { cat build/wheel.log; exit 1; }
	@ls dist/*.whl

.PHONY: clean
clean: ## Remove everything that was built (the virtual environment too)
	@rm -rf build dist vcuda/_lib deviceplugin/_proto $(BINDING) *.egg-info
	@find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

.PHONY: setup
setup: build/stamp/venv native $(BINDING) $(PROTOCOL)

.PHONY: native
native: build/stamp/venv
	@$(MAKE) -C native

build/stamp/packages: tools/packages.sh tools/apt.sh
	@tools/packages.sh
	@mkdir -p $(@D) && touch $@

build/stamp/venv: build/stamp/packages $(REQUIREMENTS) pyproject.toml setup.py
	@echo "setup: virtual environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet $(addprefix -r ,$(REQUIREMENTS))
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@mkdir -p $(@D) && touch $@

$(BINDING): build/stamp/venv $(BINDING_SOURCES)
	@$(BIN)/python setup.py --quiet build_ext --inplace --force
	@touch $@

$(PROTOCOL): build/stamp/venv $(wildcard deviceplugin/protocol/*)
	@$(BIN)/python deviceplugin/protocol/generate.py
