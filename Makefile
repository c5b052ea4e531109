# `make demo` and `make test` set up everything they need. Override the interpreter with `make PYTHON=python3.12 ...`.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
SOURCES := $(shell find ops_dcnv3/csrc -type f) setup.py ops_dcnv3/build.py
# Compiling CUDA kernels for every architecture takes a minute and is of no use without a GPU.
export OPS_DCNV3_NO_CUDA ?= $(if $(shell command -v nvidia-smi),0,1)

.PHONY: setup demo demo-detection demo-segmentation test lint docs web web-page faults clean

setup: $(VENV)/.installed-test

# Install the extra named by the stem, in place and without build isolation: the kernels are compiled against this very
# torch. The extra `test` holds the others.
$(VENV)/.installed-%: requirements.txt pyproject.toml $(SOURCES)
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --requirement requirements.txt
	$(RUN) -m pip install --quiet --no-build-isolation --editable ".[$*]"
	$(if $(filter test,$*),$(RUN) -m pip install --quiet --no-deps mmdet3d==1.4.0 nuscenes-devkit==1.2.0 lyft_dataset_sdk==0.0.8)
	$(RUN) -m ops_dcnv3
	touch $@ $(if $(filter test,$*),$(VENV)/.installed-visualize $(VENV)/.installed-mm)

demo: $(VENV)/.installed-visualize
	$(RUN) -m classification.demo

demo-detection: $(VENV)/.installed-mm
	$(RUN) -m detection.demo

demo-segmentation: $(VENV)/.installed-mm
	$(RUN) -m segmentation.demo

# In the order of collection, long files first: by numbers of tests, files of few slow tests came last and kept one core
# waiting.
test: setup
	$(RUN) -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

# The documentation as a site, in site/.
docs: setup
	PYTHONPATH=. $(RUN) -m zensical build --clean --strict

# The page that runs the demo's classifier in a browser, in $(WEB): serve it with `python -m http.server -d site/web`.
WEB := site/web
web: demo web-page
	$(RUN) classification/export.py --checkpoint output/demo/ckpt_epoch_best.pth --images data/fashion_mnist/val \
	    --sampling-points --static --repeats 0 --output $(WEB)/model.onnx
	mkdir -p $(WEB)/samples
	for name in $$(ls data/fashion_mnist/val); do cp data/fashion_mnist/val/$$name/0003.png $(WEB)/samples/$$name.png; done

# The page without a model.
web-page: build/web/node_modules/.package-lock.json
	mkdir -p $(WEB)
	cp docs/web/*.html docs/web/*.css docs/web/*.js $(WEB)
	cd build/web/node_modules/onnxruntime-web/dist && \
	    cp ort.wasm.bundle.min.mjs ort-wasm-simd-threaded.wasm $(abspath $(WEB))

build/web/node_modules/.package-lock.json: docs/web/package.json docs/web/package-lock.json docs/web/.npmrc
	mkdir -p build/web
	cp $^ build/web
	cd build/web && npm ci

# Kill trainings, damage files, run odd operator calls under sanitizers: an hour or two, with a table at the end.
faults: setup
	$(RUN) tests/faults

clean:
	rm -rf site .cache build dist *.egg-info output data/fashion_mnist data/composites .pytest_cache .ruff_cache
	find ops_dcnv3 -name '*.so' -delete
