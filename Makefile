# `make demo` and `make test` set up .venv first; nothing is installed outside it.
PYTHON ?= python3
# Installed before the package, so that another build can be chosen: TORCH="torch --index-url ..." for a CPU-only one.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types clean

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@

demo: $(VENV)/.ready
	$(BIN)/unmask demo

test: $(VENV)/.ready
	$(BIN)/pytest

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/pyright

clean:
	rm -rf $(VENV) runs build dist
