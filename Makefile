# Every target makes its own environment first, so that each works on a fresh clone with only Python, git and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.installed-demo
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Interpreters for `make test-pythons`: those of these that are found, and those of pyenv.
PYTHONS ?= python3.11 python3.12 python3.13 python3.14 $(wildcard $(HOME)/.pyenv/versions/3.1[1-4].*/bin/python)
CORE = tests/test_cli.py tests/test_options.py tests/test_imports.py tests/heads tests/objectives tests/views \
	tests/files tests/train/test_engine.py tests/weights/test_exported.py

# Where this is set, every process that the tests start compiles all files again, and rewrites the assertions of all tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all test-pythons test-newest check format bench golden docs clean

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing Dovetail and what its tests need into $(VENV): torch and others, up to 6 GB with CUDA, minutes."
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[dev,bench,demo]'
	touch $(STAMP) $(DEMO_STAMP)

# What the demo needs alone is installed in less time.
$(DEMO_STAMP): pyproject.toml constraints.txt
	@echo "1/3 Making a Python environment in $(VENV)."
	$(PYTHON) -m venv $(VENV)
	@echo "2/3 Installing Dovetail: torch and others, up to 6 GB on disk with CUDA; this takes minutes."
	$(subst --quiet,--progress-bar on,$(INSTALL)) -e '.[demo]'
	touch $(DEMO_STAMP)

demo: $(DEMO_STAMP)
	@echo "3/3 Pre-training, fine-tuning and drawing, into demo-out."
	$(BIN)/python -m benchmarks.demo --out demo-out

# A file's tests stay in one process, so that what they share is made once.
test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-all: $(STAMP)
	$(BIN)/python -m pytest -n 2 --hypothesis-profile=thorough

# A part of the tests on every version of Python that is found, one after the other, each in an environment of its own.
test-pythons:
	@seen=; for python in $(PYTHONS); do \
		version=$$($$python --version 2> /dev/null) || continue; \
		case "$$seen" in *"<$$version>"*) continue ;; esac; \
		seen="$$seen<$$version>"; \
		echo "== $$version"; \
		$$python -m venv --clear .venv-python && \
		.venv-python/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' && \
		.venv-python/bin/python -m pytest -m "not slow" -n 2 --dist loadfile $(CORE) || exit 1; \
	done; rm -rf .venv-python; \
	test -n "$$seen" || { echo "None of these was found: $(PYTHONS)"; exit 1; }

# The same part with the newest versions that pyproject.toml allows, without constraints.txt.
test-newest:
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade -e '.[dev]'
	.venv-newest/bin/python -m pip list
	.venv-newest/bin/python -m pytest -m "not slow" -n 2 --dist loadfile $(CORE)
	rm -rf .venv-newest

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
	rm -rf $(VENV) .venv-python .venv-newest demo-out site .mypy_cache .ruff_cache .pytest_cache
