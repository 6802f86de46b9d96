# Farandole: what people type. `make help` lists it.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help

$(VENV)/runtime: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Farandole needs Python 3.11 or newer; set PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the locked dependencies into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/development: requirements-dev.lock $(VENV)/runtime
	@echo "installing the locked development tools into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

PROTOS = $(shell cd proto && find . -name '*.proto' | sed 's|^./||' | sort) buf/validate/validate.proto
SERVICE_PROTOS = $(shell cd proto && find . -name '*_service.proto' | sed 's|^./||' | sort)
PROTOC = $(BIN)/python -m grpc_tools.protoc -Iproto -Ithird_party/proto

.PHONY: generate
generate: $(VENV)/development ## rebuild generated/ from proto/
	@rm -rf generated/python generated/descriptors.binpb
	@mkdir -p generated/python
	@PATH=$(BIN):$$PATH $(PROTOC) --python_out=generated/python --mypy_out=quiet:generated/python $(PROTOS)
	@PATH=$(BIN):$$PATH $(PROTOC) --grpc_python_out=generated/python --mypy_grpc_out=quiet:generated/python $(SERVICE_PROTOS)
	@$(BIN)/buf build --as-file-descriptor-set --exclude-source-info --output generated/descriptors.binpb

.PHONY: lock
lock: $(VENV)/development ## write both lock files anew
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group install pyproject.toml --output-file requirements.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group dev pyproject.toml --output-file requirements-dev.lock
