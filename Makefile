# Two commands on a machine with Python 3.11+ and make:
#   make demo   set up .venv, recognise a generated video, print where the results are
#   make test   set up .venv, lint, type-check, run all tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo docs test lint types format clean

$(INSTALLED): pyproject.toml constraints.txt setup.py $(wildcard src/memvit/kernels/csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit("memvit needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/memvit demo --out demo-output

docs: $(INSTALLED)
	$(BIN)/python -m sphinx -W --keep-going -q docs build/docs

test: lint types
	$(BIN)/python -m pytest -n 2

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo-output build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
