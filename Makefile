# README's two commands are `make demo` and `make test`. Each makes its own virtual environment.
PYTHON ?= python3
DEMO_ENV := .venv-demo
TEST_ENV := .venv-test
INSTALL := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SOURCES := $(shell find llmsuper model_lists -type f -not -path '*/__pycache__/*')

.PHONY: demo test static suite report bench clean

demo: $(DEMO_ENV)/installed
	$(DEMO_ENV)/bin/llmsuper demo

# Side by side, for what reads the code keeps one core busy for two minutes.
test: $(TEST_ENV)/installed
	@$(MAKE) --no-print-directory --jobs 2 static suite

static: $(TEST_ENV)/installed
	$(TEST_ENV)/bin/ruff check .
	$(TEST_ENV)/bin/ruff format --check .
	$(TEST_ENV)/bin/mypy
	$(TEST_ENV)/bin/lint-imports
	$(TEST_ENV)/bin/llmsuper report --check

suite: $(TEST_ENV)/installed
	$(TEST_ENV)/bin/pytest -n auto --dist loadfile

# After a new record, or a change of anything that a page prints.
report: $(TEST_ENV)/installed
	$(TEST_ENV)/bin/llmsuper report

# On demand: minutes, and best on a machine that does nothing else.
bench: $(TEST_ENV)/installed
	$(TEST_ENV)/bin/python benchmarks/bench_overlap.py
	$(TEST_ENV)/bin/python benchmarks/bench_memory.py

# The demo runs what users get: the wheel, not the checkout.
$(DEMO_ENV)/installed: pyproject.toml constraints.txt $(SOURCES)
	$(PYTHON) -m venv $(DEMO_ENV)
	$(DEMO_ENV)/bin/python $(INSTALL) --force-reinstall --no-deps .
	$(DEMO_ENV)/bin/python $(INSTALL) .
	touch $@

$(TEST_ENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TEST_ENV)
	$(TEST_ENV)/bin/python $(INSTALL) --editable '.[test]'
	touch $@

clean:
	rm -rf $(DEMO_ENV) $(TEST_ENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
