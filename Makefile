# Everything sets itself up in .venv: nothing needs to be installed by hand but Python and pip.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

PEERS := maxsim sentence-transformers llama-index rerankers candding

.PHONY: help demo docs docs-serve clear-notebooks test check test-examples test-lowest test-ray test-sanitized \
	test-vllm test-wheel bench-cranfield bench-index bench-index-peers bench-qdrant bench-speed bench-concurrent \
	bench-observing bench-gpu clean

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
	@$(INSTALL) -e '.[dev,conformance]'
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	@$(INSTALL) -e '.[docs]'
	@touch $@

$(VENV)/.kernel: $(VENV)/.core $(wildcard kernel/src/*) kernel/setup.py
	@$(INSTALL) --force-reinstall ./kernel || echo "Without a C compiler the compiled kernel is not tested."
	@touch $@

demo: $(VENV)/.demo  ## Rerank real text in LangChain and LlamaIndex, offline
	@$(BIN)/python examples/demo.py

docs: $(VENV)/.docs  ## Build the documentation site, warnings as errors, into site/
	@$(BIN)/python -m sphinx --quiet --fail-on-warning -c docs . site
	@echo "Open site/index.html"

docs-serve: docs  ## Build it, and serve it on port 8000
	@$(BIN)/python -m http.server --directory site 8000

clear-notebooks: $(VENV)/.docs  ## Take the outputs out of the notebooks, before a commit
	@$(BIN)/python docs/notebooks.py

check: $(VENV)/.dev $(VENV)/.kernel  ## Format, lint, types and docstrings
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/pydoclint --quiet --config pyproject.toml colbert_integrations

# By file, since a file's tests share what takes long to set up; in the order of tests/conftest.py, the longest first.
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

test: check  ## Check, then run the everyday tests, WORKERS (2) at a time
	@$(PYTEST) --ignore=tests/examples --ignore=tests/benchmarks

test-examples: $(VENV)/.dev $(VENV)/.kernel  ## Run the examples, the notebooks, the site and the benchmarks, as users do
	@$(PYTEST) tests/examples tests/benchmarks

test-lowest:  ## Run the tests with the lowest versions that pyproject.toml admits
	@$(PYTHON) tests/packaging/lowest.py

.venv-ray/.done: tests/ray.txt pyproject.toml
	@test -x .venv-ray/bin/python || $(PYTHON) -m venv .venv-ray
	@.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r constraints.txt
	@.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[offline,qdrant]' \
		-r $<
	@touch $@

test-ray: .venv-ray/.done  ## Run the recipe for Ray Data on a cluster of one machine, in an environment of its own
	@.venv-ray/bin/python -m pytest tests/test_ray_data.py -p no:cacheprovider

# vLLM for CPUs needs a torch and a transformers of its own; torchvision and its like, which it brings, are built for
# another torch and would break transformers.
.venv-vllm/.done: tests/remote/vllm.txt
	@test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	@echo "Installing vLLM (3.5 GB, some minutes) ..."
	@.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-vllm: $(VENV)/.dev .venv-vllm/.done  ## The tests of vLLM on a real server, in an environment of its own
	@COLBERT_TEST_VLLM=$(abspath .venv-vllm)/bin/python $(BIN)/python -m pytest tests/remote

test-sanitized: $(VENV)/.dev  ## The tests of the compiled kernel, built so that memory it must not touch is an error
	@$(BIN)/python tests/packaging/sanitized.py

test-wheel:  ## Install the built wheel with each extra alone in a clean environment, and use it
	@$(PYTHON) tests/packaging/wheel.py

bench-cranfield: $(VENV)/.core  ## Retrieval quality on Cranfield, appended to benchmarks/results/cranfield.csv
	@$(INSTALL) -e '.[benchmark]'
	@$(BIN)/python benchmarks/cranfield.py

bench-index: $(VENV)/.core  ## The index: quality on Cranfield, and 1,000 to 100,000 passages
	@$(INSTALL) -e '.[benchmark]'
	@$(BIN)/python benchmarks/index_cranfield.py
	@$(BIN)/python benchmarks/index_scale.py
	@$(BIN)/python benchmarks/plot_index.py

.venv-pylate/.done: benchmarks/peers/pylate.txt benchmarks/peers/pylate-no-deps.txt
	@test -x .venv-pylate/bin/python || $(PYTHON) -m venv .venv-pylate
	@.venv-pylate/bin/python -m pip install --quiet -r $<
	@.venv-pylate/bin/python -m pip install --quiet --no-deps -r benchmarks/peers/pylate-no-deps.txt
	@touch $@

bench-index-peers: $(VENV)/.core .venv-pylate/.done  ## The index beside LanceDB and PyLate, each in an environment of its own
	@$(INSTALL) -e '.[benchmark]'
	@test -x .venv-lancedb/bin/python || $(PYTHON) -m venv .venv-lancedb
	@.venv-lancedb/bin/python -m pip install --quiet -r benchmarks/peers/lancedb.txt
	@$(BIN)/python benchmarks/index_peers.py --sizes 1000 10000 100000 \
		--lancedb .venv-lancedb/bin/python --pylate .venv-pylate/bin/python

bench-qdrant: $(VENV)/.dev  ## Qdrant's engine: Cranfield through both retrievers, and loading 20,000 passages
	@$(BIN)/python benchmarks/qdrant_cranfield.py
	@$(BIN)/python benchmarks/qdrant_first_stage.py
	@$(BIN)/python benchmarks/qdrant_load.py
	@$(BIN)/python benchmarks/corpus_load.py

bench-speed: $(VENV)/.core $(VENV)/.kernel .venv-pylate/.done  ## MaxSim, encoding and reranking beside other libraries
	@$(INSTALL) -e '.[benchmark,llama-index]'
	@for peer in $(PEERS); do \
		test -x .venv-$$peer/bin/python || $(PYTHON) -m venv .venv-$$peer; \
		.venv-$$peer/bin/python -m pip install --quiet -c constraints.txt -r benchmarks/peers/$$peer.txt || exit 1; done
	@$(BIN)/python benchmarks/maxsim_peers.py --maxsim .venv-maxsim/bin/python \
		--sentence-transformers .venv-sentence-transformers/bin/python --pylate .venv-pylate/bin/python
	@$(BIN)/python benchmarks/encoding_peers.py --candding .venv-candding/bin/python \
		--sentence-transformers .venv-sentence-transformers/bin/python --pylate .venv-pylate/bin/python
	@$(BIN)/python benchmarks/rerank_peers.py --llama-index .venv-llama-index/bin/python \
		--rerankers .venv-rerankers/bin/python --pylate .venv-pylate/bin/python \
		--sentence-transformers .venv-sentence-transformers/bin/python
	@$(BIN)/python benchmarks/plot_speed.py

bench-concurrent: $(VENV)/.core $(VENV)/.kernel  ## Many rerank requests at once, ours alone
	@$(INSTALL) -e '.[benchmark]'
	@$(BIN)/python benchmarks/rerank_peers.py --concurrent

bench-observing: $(VENV)/.core  ## What it costs to be observable, beside the code before
	@$(INSTALL) -e '.[benchmark]'
	@$(BIN)/python benchmarks/observing_cost.py

bench-gpu: $(VENV)/.core  ## MaxSim, encoding and reranking on one GPU; needs one
	@$(INSTALL) -e '.[benchmark]'
	@$(BIN)/python -m pip install --quiet --no-deps -r benchmarks/peers/gpu.txt
	@$(BIN)/python benchmarks/gpu_maxsim.py
	@$(BIN)/python benchmarks/gpu_encoding.py
	@test -x .venv-sentence-transformers/bin/python || $(PYTHON) -m venv .venv-sentence-transformers
	@.venv-sentence-transformers/bin/python -m pip install --quiet -c constraints.txt \
		-r benchmarks/peers/sentence-transformers.txt
	@$(BIN)/python benchmarks/rerank_peers.py --device cuda \
		--sentence-transformers .venv-sentence-transformers/bin/python
	@$(BIN)/python benchmarks/rerank_peers.py --device cuda --concurrent

clean:  ## Remove the environment and caches
	rm -rf $(VENV) kernel/build .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build site
