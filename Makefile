# `make demo`, `make test` and `make docs` set up everything they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo docs test test-slow fuzz lint clean

demo: $(VENV)/installed
	rm -rf demo
	$(BIN)/cachedet demo --out demo

test: lint
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

# The site in site/; it ends with an error where a link or an anchor leads nowhere.
docs: $(VENV)/docs-installed
	$(BIN)/zensical build --clean --strict

# Every detector, neck and kind of backbone as an exported file, every command of the docs; minutes.
test-slow: $(VENV)/installed
	$(BIN)/pytest -n auto --thorough tests/exporting tests/test_docs.py

# Random input for five minutes, new at every call; `make test` has half a minute of it.
fuzz: $(VENV)/installed
	$(BIN)/pytest tests/fuzz --fuzz-seconds 300

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[demo,dev]'
	touch $@

$(VENV)/docs-installed: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) .cache demo site build *.egg-info
