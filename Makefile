# Everything sets itself up in .venv: nothing needs to be installed by hand but Python and pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test check docs-check test-lowest test-wheel bench-cranfield clean

help:  ## List the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

$(VENV)/.core: constraints.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing (a few minutes the first time) ..."
	@$(INSTALL) -r constraints.txt
	@touch $@

$(VENV)/.demo: $(VENV)/.core
	@$(INSTALL) -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@$(INSTALL) -e '.[dev]'
	@touch $@

demo: $(VENV)/.demo  ## Rerank real text in LangChain and LlamaIndex, offline
	@$(BIN)/python examples/demo.py

check: $(VENV)/.dev  ## Format, lint, types and docstrings
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/pydoclint --quiet --config pyproject.toml colbert_integrations

test: check  ## Check, then run the everyday tests
	@$(BIN)/python -m pytest

test-lowest:  ## Run the tests with the lowest versions that pyproject.toml admits
	@$(PYTHON) tests/packaging/lowest.py

test-wheel:  ## Install the built wheel with each extra alone in a clean environment, and use it
	@$(PYTHON) tests/packaging/wheel.py

bench-cranfield: $(VENV)/.core  ## Retrieval quality on Cranfield, appended to benchmarks/results/cranfield.csv
	@$(INSTALL) -e '.[benchmark]'
	@$(BIN)/python benchmarks/cranfield.py

clean:  ## Remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
