# `make demo` and `make test` are all a fresh machine needs: both create .venv from this project's files.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# processes of the tests, of up to 5 GB each
WORKERS ?= 2

.PHONY: demo test slow bench docs clean

$(VENV)/ready: pyproject.toml constraints.txt tests/oracle_requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt torch triton
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[mace,cueq,dev]'
	$(BIN)/python -m pip install -q --no-deps --target $(VENV)/oracles --upgrade -r tests/oracle_requirements.txt
	touch $@

demo: $(VENV)/ready
	$(BIN)/scfmlip demo --output demo_output

test: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

# tests over 10 s each; run before closing an issue
slow: $(VENV)/ready
	$(BIN)/python -m pytest -q -m slow -n $(WORKERS) --dist loadfile

bench: $(VENV)/ready
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]'
	$(BIN)/python -m bench.run

# the site, in build/site; a warning or a broken link ends it
docs: $(VENV)/ready
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) demo_output build dist *.egg-info
