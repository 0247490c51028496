# Everything here works on a bare Debian or Ubuntu; `make` alone prints this list.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CACHE := $(or $(SANDLOT_CACHE_DIR),/var/lib/sandlot/cache)
BIN := .venv/bin
PYTEST_ARGS ?=
BENCH ?=
GUEST := sandboxd/guest

.PHONY: help
help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: setup ## Set up what is missing, then start Sandlot in the foreground
	@$(BIN)/sandlotd up

.PHONY: down
down: environment ## Stop everything, sandboxes too
	@$(BIN)/sandlotd down

.PHONY: doctor
doctor: environment ## Check this machine, one line a check
	@$(BIN)/sandlotd doctor

.PHONY: setup
setup: environment ## Install and build what is missing (OS packages, Python, runsc, guest, base image)
	@$(BIN)/python -m infra.setup

.PHONY: environment
environment:
	@infra/bootstrap.sh

.PHONY: guest
guest: environment ## Build the guest agent
	@$(BIN)/python -m infra.setup guest

.PHONY: test
test: setup test-tools check go-test pytest ## Set up, check and run every test

.PHONY: test-tools
test-tools: environment ## Fetch what only tests need: a registry and skopeo from Debian's packages, an S3 server, ffmpeg
	@$(BIN)/python -m infra.setup test-tools test-s3 test-ffmpeg-small

.PHONY: acceptance
acceptance: setup test-tools ## Run whole scenarios with real images, encoders and a browser (fetches 900 MiB, once)
	@$(BIN)/python -m infra.setup test-ffmpeg test-jupyter test-browser test-images
	@SANDLOT_LEAK_CHECK=1 $(BIN)/pytest tests/acceptance $(PYTEST_ARGS)

.PHONY: pytest
pytest: environment ## Run the Python tests (PYTEST_ARGS="tests/unit -k ...")
	@SANDLOT_LEAK_CHECK=1 $(BIN)/pytest $(PYTEST_ARGS)

.PHONY: go-test
go-test: environment ## Run the guest's own tests
	@$(BIN)/python -m infra.setup go test ./...

.PHONY: check
check: environment ## Formatting, lints, types, layers, dependencies, committed API documents
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/pyright
	@$(BIN)/lint-imports
	@$(BIN)/deptry .
	@$(BIN)/python -m openapi.generate --check
	@$(BIN)/python clients/python/generate.py --check
	@$(BIN)/python clients/python/unasync.py --check
	@$(BIN)/python -m infra.setup go vet ./...
	@unformatted=$$($(BIN)/python -m infra.setup gofmt -l .); \
		if [[ -n "$$unformatted" ]]; then echo "gofmt: $$unformatted" >&2; exit 1; fi

.PHONY: format
format: environment ## Format the Python and Go sources
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix --select I
	@$(BIN)/python -m infra.setup gofmt -w .

.PHONY: openapi
openapi: environment ## Write the committed API documents anew
	@$(BIN)/python -m openapi.generate
	@$(BIN)/python clients/python/generate.py

.PHONY: bench
bench: setup ## Measure the budgets as ratios to the raw tool (BENCH="pool burst" for some; all take half an hour)
	@PYTHONPATH=.:tests:tests/performance $(BIN)/python tests/performance/bench.py $(BENCH)

.PHONY: lock
lock: environment ## Bring requirements.lock in step with pyproject.toml (UPGRADE=--upgrade for newer versions)
	@$(CACHE)/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --group dev --generate-hashes \
		--no-emit-index-url --no-annotate --no-header --no-emit-package sandlot $(UPGRADE) \
		pyproject.toml --output-file requirements.lock
	@$(CACHE)/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --no-header $(UPGRADE) \
		infra/locks/inspect.in --output-file infra/locks/inspect.txt
	@for name in ffmpeg ffmpeg-small jupyter; do $(CACHE)/uv/bin/uv pip compile --quiet --python-version 3.11 --python-platform linux \
		--generate-hashes --only-binary :all: --no-emit-index-url --no-annotate --no-header $(UPGRADE) \
		infra/locks/$$name.in --output-file infra/locks/$$name.txt; done

.PHONY: clean
clean: ## Remove what the tools left in this directory; the cache stays
	@rm -rf .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
