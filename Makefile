# `make bench` and `make test` do everything from a fresh clone; they need only Python and make.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help bench test lint format docs perf notebook clean

help:  ## Show what there is to make.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1  /'

bench: $(STAMP)  ## Benchmark one or two architectures of each family on digits: about five minutes.
	$(BIN)/zoobench run quick

test: $(STAMP)-test  ## Run the whole test suite.
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(STAMP)-dev  ## Check style, types and import contracts.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)-dev  ## Mend style.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)-dev  ## Build the guides and the reference into docs/_build; a warning is an error.
	$(BIN)/sphinx-build -q -W --keep-going docs docs/_build

perf: $(STAMP)-test  ## Measure zoobench's own speed, as ratios of things measured side by side.
	$(BIN)/python -m pytest tests/perf --override-ini addopts=--import-mode=importlib -s --benchmark-columns=median,rounds \
		--benchmark-json=results/perf.json

notebook: $(STAMP)-test  ## Run results/explore.ipynb on the published records and keep what it shows.
	$(BIN)/python -c 'import nbclient, nbformat; path = "results/explore.ipynb"; book = nbformat.read(path, 4); \
		nbclient.NotebookClient(book, record_timing=False, resources={"metadata": {"path": "results"}}).execute(); \
		nbformat.write(book, path)'

clean:  ## Remove the virtual environment.
	rm -rf .venv

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"zoobench needs Python 3.11 or newer, this is {sys.version.split()[0]}; name another: make PYTHON=python3.12"'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(STAMP)-test: $(STAMP)
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	touch $@

$(STAMP)-dev: $(STAMP)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@
