# One command each. All of it runs in $(VENV), made on first use and filled from the
# pins in constraints.txt; nothing is installed again until those or pyproject.toml change.

VENV ?= .venv
# The pins are made on Python 3.11, so that one first.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo "$$python" && break; done)
# Two busy processes, each with a thread pool of its own, get in each other's way.
WORKERS ?= 2
PYTEST_ARGS ?=

BIN := $(VENV)/bin

.PHONY: help demo test test-deep test-arviz1 docs benchmarks check lint types imports format
# Two pips in one environment do not get along.
.NOTPARALLEL:

help:
	@echo "make demo    fit one program three ways and compare the fits (writes to demo/)"
	@echo "make test    run the tests (PYTEST_ARGS='-k name' selects)"
	@echo "make test-deep  the same for every method of every program; takes twice as long"
	@echo "make test-arviz1  test what hands fits to ArviZ with ArviZ 1.x, under python3.12"
	@echo "make docs    build the pages in docs/_build/html, running everything on them"
	@echo "make benchmarks  time probsl against its rivals; takes half an hour"
	@echo "make check   lint, types and imports"
	@echo "make format  format the code and sort its imports"

demo: $(VENV)/.installed-examples
	$(BIN)/python examples/linear_regression.py demo

test: $(VENV)/.installed-tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(PYTEST_ARGS)

# The laws over the whole grid of methods and programs, and 200 examples of each property.
test-deep:
	HYPOTHESIS_PROFILE=deep $(MAKE) test

# In an environment of its own, where there is a python3.12.
test-arviz1:
	tests/arviz1/run.sh

# From nothing: what is left of an earlier build would hide a page that is gone.
docs: $(VENV)/.installed-docs
	@echo "Building the pages, and running everything on them; that takes minutes."
	rm -rf docs/_build docs/api/generated docs/gallery
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going docs docs/_build/html
	@echo "The pages are in docs/_build/html; begin with $(CURDIR)/docs/_build/html/index.html"

# The rivals have an environment of their own.
benchmarks:
	$(MAKE) VENV=.venv-benchmarks .venv-benchmarks/.installed-benchmarks
	cd tests/benchmarks && for script in steps starts memory cold choice columns; do \
		OMP_NUM_THREADS=1 ../../.venv-benchmarks/bin/python "$$script.py" || exit 1; \
	done

check: lint types imports

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

imports: $(VENV)/.installed-dev
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "probsl needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stem is an extra of pyproject.toml.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing probsl and its $* into $(VENV); the first time takes minutes."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@
