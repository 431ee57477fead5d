# Two commands on a fresh machine: `make demo`, `make test`. Only python3 (3.11 or newer) and make are needed.
.PHONY: demo test test-slow test-cluster check lint types docs setup image clean

PY := .venv/bin/python
STAMP := .venv/.installed
# Two processes share the tests; one thread each, for more would wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -q -rs --durations=10 -n 2 --dist loadfile --no-loadscope-reorder

setup: $(STAMP)

$(STAMP): pyproject.toml
	python3 -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check uv
	$(PY) -m uv pip install --quiet --compile-bytecode --python $(PY) --group dev --editable .
	mkdir -p .venv/types && ln -sfn ../.. .venv/types/tokenmill
	touch $(STAMP)

demo: $(STAMP)
	.venv/bin/tokenmill demo

test: $(STAMP)
	$(PYTEST)

test-slow: $(STAMP)
	$(PYTEST) -m "slow and not cluster"

test-cluster: $(STAMP)
	$(PYTEST) -m cluster

check: lint types
	$(PYTEST) -m "not slow and not service and not hostile"

lint: $(STAMP)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: $(STAMP)
	.venv/bin/mypy

# The pages as a site in build/site; a broken link fails.
docs: $(STAMP)
	$(PY) -m uv pip install --quiet --python $(PY) --group docs
	$(PY) docs/build.py

# The image of a cluster's nodes, by whichever of these is installed: podman, buildah, docker.
IMAGE := tokenmill
IMAGE_VARIANT := cpu
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
image:
	builder=$$(command -v podman || command -v buildah || command -v docker) || \
		{ echo "no podman, buildah or docker here: install one"; exit 1; }; \
	"$$builder" build --build-arg VARIANT=$(IMAGE_VARIANT) --tag $(IMAGE):$(VERSION)-$(IMAGE_VARIANT) --file deploy/Dockerfile .

clean:
	rm -rf .venv runs build *.egg-info
