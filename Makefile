# Two commands on a fresh machine: `make demo` and `make test`. Nothing but Python 3.11 or later and a network is needed;
# PYTHON=/path/to/python3.12 chooses another Python than python3.
#
# Three tiers of tests: `make test` leaves out those that are marked slow, `make test-all` runs them too (CI calls it),
# `make soak` runs for hours and is started by hand before a release.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
PROJECTS := pyproject.toml $(PLUGINS:%=%/pyproject.toml)

TESTS := tests $(wildcard $(PLUGINS:%=%/tests))
PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

.PHONY: help demo test test-all soak lint clean

help:
	@echo "make demo      set everything up and show a tiny model at work"
	@echo "make test      set everything up for development; ruff, mypy and the fast tests"
	@echo "make test-all  the same with the slow tests, as CI runs them"
	@echo "make soak      hours of fuzzing, of killed writers and of mixed requests"
	@echo "make lint      ruff and mypy alone"
	@echo "make clean     remove what these made"

demo: $(VENV)/.demo
	$(BIN)/gemma4 demo

test: lint
	$(PYTEST) -m "not slow" $(TESTS)

test-all: lint
	$(PYTEST) $(TESTS)

soak: $(VENV)/.test
	$(BIN)/python benchmarks/robustness/fuzz.py --cases 100000 --jobs 2
	$(BIN)/python benchmarks/robustness/kills.py --kills 1000
	$(BIN)/python benchmarks/robustness/batch_kills.py --rows 2000 --kills 20
	$(BIN)/python benchmarks/robustness/soak.py --requests 10000
	$(BIN)/python benchmarks/robustness/serve_fuzz.py --cases 100000
	$(BIN)/python benchmarks/robustness/serve_soak.py --minutes 10 --streams 64

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
	$(PIP) install -e '.[cpu,dev,train,plot,data,tokenizer,multimodal]' $(PLUGINS:%=-e '%[test]')
	@touch $@ $(VENV)/.demo
