# `make demo`, `make test` and `make docs` set up everything they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo docs test fast-tests test-slow fuzz lint release-check clean

demo: $(VENV)/installed
	rm -rf demo
	$(BIN)/cachedet demo --out demo

# At once: mypy has one process, and the tests leave it a share of the cores.
test: $(VENV)/installed
	$(MAKE) --jobs 2 lint fast-tests

fast-tests: $(VENV)/installed
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

# The site in site/; it ends with an error where a link or an anchor leads nowhere.
docs: $(VENV)/docs-installed
	$(BIN)/zensical build --clean --strict

# What takes 10 s and more: every detector, neck and backbone exported, the commands of the docs, kills.
test-slow: $(VENV)/installed
	$(BIN)/pytest -n auto --thorough -m thorough

# Random input for five minutes, new at every call; `make test` has half a minute of it.
fuzz: $(VENV)/installed
	$(BIN)/pytest tests/fuzz --fuzz-seconds 300

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What would be published: sdist, the wheel made from it, and that wheel alone in a new environment.
release-check: $(VENV)/installed
	rm -rf build dist
	$(BIN)/python -m build
	sh benchmarks/release_check.sh $(BIN)/python

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[demo,dev]'
	touch $@

$(VENV)/docs-installed: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) .cache demo site build dist *.egg-info
