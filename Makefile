# Every target makes what it needs, from a fresh clone, with Python 3.11+ and make alone.
#   make PYTHON=python3.13 test        another interpreter
#   make test ARGS="-k sinkhorn"       more for pytest, the demo or the benchmarks

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Two workers with one thread each: small arrays gain nothing from more.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 \
	XLA_FLAGS=--xla_cpu_multi_thread_eigen=false
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest -n 2

.PHONY: help install demo test test-slow coverage bench lint typecheck format docs clean

help:
	@echo "make install | demo | test | test-slow | coverage | bench | lint | format | docs | clean"

install: $(VENV)/installed-test $(VENV)/installed-lint

demo: $(VENV)/installed-base
	$(BIN)/python examples/compare_objectives.py --preset laptop $(ARGS)

test: $(VENV)/installed-test
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(VENV)/installed-test
	$(PYTEST) -m slow $(ARGS)

coverage: $(VENV)/installed-test
	$(PYTEST) -m "not slow" --cov --cov-report=term-missing:skip-covered $(ARGS)

bench: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks $(ARGS)

lint: $(VENV)/installed-lint typecheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# models/ and inference/ are bayesdiv.models and bayesdiv.inference only once installed, and mypy does
# not follow the editable install's import hook: it reads a plain installation, made here.
typecheck: $(VENV)/installed-lint
	rm -rf build
	$(PIP) --no-deps --no-build-isolation --target build/installed .
	cd build/installed && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml \
		--cache-dir $(CURDIR)/.mypy_cache -p bayesdiv \
		| sed -E 's#^bayesdiv/(models|inference)/#\1/#'

format: $(VENV)/installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean:
	rm -rf build dist docs/_build htmlcov .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis

# One stamp for each set of extras, so that the demo does not wait for Sphinx.
$(VENV)/installed-base: $(VENV)/created
	$(PIP) --no-build-isolation -e .
	@touch $@

$(VENV)/installed-%: $(VENV)/created
	$(PIP) --no-build-isolation -e ".[$*]"
	@touch $@

$(VENV)/created: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"Python 3.11 or later is needed, got " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) setuptools
	@touch $@
