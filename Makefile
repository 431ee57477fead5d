# Two commands on a fresh machine: `make demo`, `make test`. Only python3 (3.11 or newer) and make are needed.
.PHONY: demo test test-slow lint types setup clean

PY := .venv/bin/python
STAMP := .venv/.installed

setup: $(STAMP)

$(STAMP): pyproject.toml
	python3 -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check uv
	$(PY) -m uv pip install --quiet --compile-bytecode --python $(PY) --group dev --editable .
	touch $(STAMP)

demo: $(STAMP)
	.venv/bin/tokenmill demo

test: $(STAMP)
	$(PY) -m pytest -q -rs --durations=10

test-slow: $(STAMP)
	$(PY) -m pytest -q -m slow -rs --durations=10

lint: $(STAMP)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: $(STAMP)
	.venv/bin/mypy

clean:
	rm -rf .venv runs build *.egg-info
