# Two commands are all the set-up: `make quickstart` and `make test`. Both begin with `make install`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The `accord` command chooses how its threads wait; tests import torch themselves, so they are told here. They run in as many
# processes as there are cores, of one thread each.
test test-slow: export OMP_WAIT_POLICY ?= PASSIVE
test test-slow: export TOKENIZERS_PARALLELISM ?= false
test: export OMP_NUM_THREADS ?= 1

.PHONY: install quickstart test test-slow lint format clean

install: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	# torch first and alone, so that no other package's range drags in a CUDA build.
	$(BIN)/pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q -c constraints.txt -e '.[test,dev]'
	@touch $@

quickstart: install
	$(BIN)/accord quickstart

test: install
	HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 $(BIN)/python -m pytest -n auto --dist loadfile

test-slow: install
	HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 $(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix src tests benchmarks examples
	$(BIN)/ruff format src tests benchmarks examples

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
