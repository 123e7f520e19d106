# Two commands on a fresh machine: `make demo` and `make test`. Nothing but Python 3.11 or later and a network is needed;
# PYTHON=/path/to/python3.12 chooses another Python than python3.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
PROJECTS := pyproject.toml $(PLUGINS:%=%/pyproject.toml)

.PHONY: help demo test lint clean

help:
	@echo "make demo    set everything up and show a tiny model at work"
	@echo "make test    set everything up for development and run all checks"
	@echo "make lint    ruff and mypy alone"
	@echo "make clean   remove what these made"

demo: $(VENV)/.demo
	$(BIN)/gemma4 demo

test: lint
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal tests $(wildcard $(PLUGINS:%=%/tests))

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
	find src tests plugins examples -name '*.egg-info' -prune -exec rm -rf {} + -o -name __pycache__ -prune -exec rm -rf {} +

# A virtual environment that could not be finished is removed, so that the next try starts over.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed; choose one with make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); \
	  echo "python -m venv failed; on Debian and Ubuntu install python3-venv, or choose another PYTHON" >&2; exit 1; }
	@touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml
	$(PIP) install -e '.[cpu]'
	@touch $@

$(VENV)/.test: $(VENV)/.made $(PROJECTS)
	$(PIP) install -e '.[cpu,dev,train,plot,tokenizer,multimodal]' $(PLUGINS:%=-e %)
	@touch $@ $(VENV)/.demo
