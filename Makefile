# `make demo` and `make test` set up .venv first; nothing is installed outside it.
PYTHON ?= python3
# Installed before the package, so that another build can be chosen: TORCH="torch --index-url ..." for a CPU-only one.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

# How much of the zoo at a time, and where its table goes; on a CPU, ZOO="--tiny --parallel 0" shows that it runs.
ZOO ?= --parallel 3 --results bench/results

.PHONY: demo test lint types wheel zoo clean

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@

demo: $(VENV)/.ready
	$(BIN)/unmask demo

test: $(VENV)/.ready
	$(BIN)/pytest -n auto

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/pyright

zoo: $(VENV)/.ready
	$(BIN)/unmask zoo configs/zoo --out runs/zoo $(ZOO)

# The built wheel, away from the source tree: it must hold the checkpoints and answer.
wheel: $(VENV)/.ready
	rm -rf build
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(BIN)/pip install --quiet --no-deps --target build/site build/wheel/*.whl
	cd build && PYTHONPATH=site ../$(BIN)/python -c "import unmask; assert 'build' in unmask.__file__, unmask.__file__; \
		print(unmask.load('nano').generate('A hen lays 3 eggs a day.', max_new_tokens=8).finish_reason)"

clean:
	rm -rf $(VENV) runs build dist
