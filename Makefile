# `make quickstart` trains, `make test` tests, `make docs` builds the site; each makes the virtual environment it needs, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS ?= dev
WORKDIR ?= runs/quickstart

.PHONY: quickstart test lint format docs notebooks versions clean

quickstart: $(VENV)/.installed
	$(BIN)/python -m vitlab.train --config=configs/quickstart.py --workdir=$(WORKDIR)

test: $(VENV)/.installed-$(EXTRAS)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/.installed-$(EXTRAS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.installed-$(EXTRAS)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

# Runs the notebooks and keeps what they print and draw.
notebooks: $(VENV)/.installed
	$(BIN)/python notebooks/refresh.py

# Models and kernels with each Python and JAX that is supported and is here.
versions:
	tests/versions.sh $(PYTEST_ARGS)

clean:
	rm -rf site $(VENV) .jax_cache build *.egg-info

# A stamp is written only after pip has succeeded, so that a broken installation is tried again.
$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.py | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.installed-%: setup.py | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --editable ".[$*]"
	touch $(VENV)/.installed $@
