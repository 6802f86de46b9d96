# Farandole: what people type. `make help` lists it.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOOLS := .tools/bin

.DEFAULT_GOAL := help

# The shape of the stack that `up` and `chaos` run; what is not given is as `up` ran last, and at first, as for `chaos`,
# one process a service, SQLite, one nats-server.
ifdef REPLICAS
export FARANDOLE_STACK_REPLICAS = $(REPLICAS)
endif
ifdef DATABASE
export FARANDOLE_STACK_DATABASE = $(DATABASE)
endif
ifdef NATS
export FARANDOLE_STACK_NATS = $(NATS)
endif

.PHONY: help
help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

## The environment

$(VENV)/runtime: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Farandole needs Python 3.11 or newer; set PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Python's venv module is missing; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing the locked dependencies into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/development: requirements-dev.lock $(VENV)/runtime
	@echo "installing the locked development tools into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

$(TOOLS)/installed: tools/go.mod tools/go.sum tools/compose-config/main.go tools/promtool/go.mod tools/promtool/go.sum
	@command -v go >/dev/null || { echo "the tools are built with Go (https://go.dev/dl); it is not installed" >&2; exit 1; }
	@echo "building grpcurl, nats, promtool and compose-config into $(TOOLS)"
	@cd tools && GOFLAGS=-mod=readonly GOBIN=$(CURDIR)/$(TOOLS) go install tool
	@cd tools/promtool && GOFLAGS=-mod=readonly GOBIN=$(CURDIR)/$(TOOLS) go install -tags remove_all_sd tool
	@touch $@

.PHONY: tools
tools: $(TOOLS)/installed ## build the pinned grpcurl, nats, promtool and compose-config into .tools/bin (needs Go)

## The stack

.PHONY: up
up: $(VENV)/runtime ## start everything (REPLICAS=3 DATABASE=postgres NATS=cluster); returns when every health check serves
	@$(BIN)/farandole up

.PHONY: down
down: $(VENV)/runtime ## stop everything and keep the data
	@$(BIN)/farandole down

.PHONY: status
status: $(VENV)/runtime ## how every service stands
	@$(BIN)/farandole status

.PHONY: logs
logs: $(VENV)/runtime ## follow what the services write
	@$(BIN)/farandole logs --follow

.PHONY: demo
demo: $(VENV)/runtime ## order a few hundred things of every kind, and check what became of them
	@$(BIN)/python -m services.demo

## The stack in containers

.PHONY: docker-engine
docker-engine:
	@docker version >/dev/null 2>&1 || { echo "this needs Docker, and no Docker engine answers here: start one, or run the same stack without it by make up" >&2; exit 1; }
	@docker compose version >/dev/null 2>&1 || { echo "this needs the compose plugin of Docker (docker compose), which is not installed" >&2; exit 1; }

# The demo asks where the containers are published; an offset moves only the embedded stack's ports.
.PHONY: compose-up
compose-up: docker-engine $(VENV)/runtime ## build and start everything in containers; when all are healthy, run the demo
	@deploy/make-passwords.sh
	@docker compose up --build --detach --wait --wait-timeout 300
	@env -u FARANDOLE_PORT_OFFSET -u FARANDOLE_NATS_URL $(BIN)/python -m services.demo

.PHONY: compose-down
compose-down: docker-engine ## stop the containers and keep their data
	@docker compose down

.PHONY: clean
clean: ## stop everything and remove its data; .venv and .tools stay
	@if test -x $(BIN)/farandole; then $(BIN)/farandole clean; fi
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

## The code

# What wants the machine for itself.
ALONE = tests/chaos/test_chaos.py

.PHONY: test
test: $(VENV)/development ## every test: unit, contract, integration, e2e, simulation, and two minutes of chaos
	@if command -v go >/dev/null; then $(MAKE) --no-print-directory tools; fi
	@PATH="$(CURDIR)/$(TOOLS):$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest tests --numprocesses=2 --dist=loadfile --ignore=$(ALONE)
	@PATH="$(CURDIR)/$(TOOLS):$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest $(ALONE)

.PHONY: contract
contract: $(VENV)/development ## the tests on schemas and definitions
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest tests/contract

.PHONY: check
check: $(VENV)/development ## format, lint, types, and the direction of imports
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: bench
bench: $(VENV)/development ## sagas, ingest, queries, deadlines and telemetry in figures, beside what does nothing (eight minutes)
	@$(BIN)/python -m benchmarks

SEEDS ?= 1000
.PHONY: simulate
simulate: $(VENV)/development ## the real sagas in virtual time, under faults that follow from a seed (SEEDS=1000)
	@$(BIN)/python -m farandole.testing.simulation services.simulation:scenario --seeds $(SEEDS)

MINUTES ?= 7

.PHONY: chaos
chaos: $(VENV)/development ## both sagas under load while everything around them fails (MINUTES=7 SEED=…, in any shape of `up`), and a verdict
	@$(BIN)/python -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

PROTOS = $(shell cd proto && find . -name '*.proto' | sed 's|^./||' | sort) buf/validate/validate.proto
SERVICE_PROTOS = $(shell cd proto && find . -name '*_service.proto' | sed 's|^./||' | sort)
PROTOC = $(BIN)/python -m grpc_tools.protoc -Iproto -Ithird_party/proto

.PHONY: generate
generate: $(VENV)/development ## rebuild generated/ from proto/
	@rm -rf generated/python generated/descriptors.binpb
	@mkdir -p generated/python
	@PATH=$(BIN):$$PATH $(PROTOC) --python_out=generated/python --mypy_out=quiet:generated/python $(PROTOS)
	@PATH=$(BIN):$$PATH $(PROTOC) --grpc_python_out=generated/python --mypy_grpc_out=quiet:generated/python $(SERVICE_PROTOS)
	@mv generated/python/packaging generated/python/packaging_contracts  # pip's tools install a package of the first name
	@sed -i 's/^from packaging\.v1 import/from packaging_contracts.v1 import/' generated/python/packaging_contracts/v1/*_grpc.py*
	@for package in generated/python/*/; do touch "$${package}py.typed"; done
	@$(BIN)/buf build --as-file-descriptor-set --exclude-source-info --output generated/descriptors.binpb

.PHONY: lock
lock: $(VENV)/development ## write both lock files anew
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group install pyproject.toml --output-file requirements.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group dev pyproject.toml --output-file requirements-dev.lock
