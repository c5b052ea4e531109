# `make demo` and `make test` set up everything they need. Override the interpreter with `make PYTHON=python3.12 ...`.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
REQUIREMENTS := requirements.txt requirements-mm.txt requirements-deploy.txt
SOURCES := $(shell find ops_dcnv3/csrc -type f) setup.py ops_dcnv3/build.py
# Compiling CUDA kernels for every architecture takes a minute and is of no use without a GPU.
export OPS_DCNV3_NO_CUDA ?= $(if $(shell command -v nvidia-smi),0,1)

.PHONY: setup demo demo-detection demo-segmentation test lint clean

setup: $(STAMP)

# The package is installed in place and without build isolation: its kernels are compiled against this very torch.
$(STAMP): $(REQUIREMENTS) pyproject.toml $(SOURCES)
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet $(addprefix --requirement ,$(REQUIREMENTS))
	$(RUN) -m pip install --quiet --no-build-isolation --no-deps --editable .
	$(RUN) -m ops_dcnv3
	touch $@

demo: setup
	$(RUN) -m classification.demo

demo-detection: setup
	$(RUN) -m detection.demo

demo-segmentation: setup
	$(RUN) -m segmentation.demo

test: setup
	$(RUN) -m pytest --numprocesses auto --dist loadfile

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean:
	rm -rf build dist *.egg-info output data/fashion_mnist data/composites .pytest_cache .ruff_cache
	find ops_dcnv3 -name '*.so' -delete
