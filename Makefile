# Every target makes its own environment first, so that each works on a fresh clone with only Python, git and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.installed-demo
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-all check format bench golden docs clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[dev,bench,demo]'
	touch $(STAMP) $(DEMO_STAMP)

# What the demo needs alone is installed in less time.
$(DEMO_STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[demo]'
	touch $(DEMO_STAMP)

demo: $(DEMO_STAMP)
	$(BIN)/python -m benchmarks.demo --out demo-out

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" -n 2

test-all: $(STAMP)
	$(BIN)/python -m pytest -n 2 --hypothesis-profile=thorough

golden: $(STAMP)
	$(BIN)/python -m tests.golden

check: $(STAMP)
	$(BIN)/ruff check src tests benchmarks .ci
	$(BIN)/ruff format --check src tests benchmarks .ci
	$(BIN)/mypy
	$(BIN)/python .ci/audit.py

format: $(STAMP)
	$(BIN)/ruff check --fix src tests benchmarks .ci
	$(BIN)/ruff format src tests benchmarks .ci

bench: $(STAMP)
	$(BIN)/python -m benchmarks

# The theme's notice of its successor is no warning about the pages.
docs: $(STAMP)
	$(INSTALL) -e '.[docs]'
	$(BIN)/python docs/tables.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) demo-out site .mypy_cache .ruff_cache .pytest_cache
