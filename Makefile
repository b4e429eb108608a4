# The first Python of at least 3.11; another one: make setup PYTHON=/path/to/python
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
PY := .venv/bin/python
# Each has libraries, and the small bundles that tests share, of its own: about 2 GB.
WORKERS ?= 2
GPU_PY = $(if $(wildcard $(PY)),$(PY),$(PYTHON))
INSTALLED := .venv/installed
TYPES := build/types/flowturbo_trt
# What the tests of Triton and C++ need beside, for this platform alone; elsewhere they are skipped.
SERVING := $(filter Linux-x86_64,$(shell uname -sm | tr ' ' -))
TRITON := $(if $(SERVING),.venv/triton/installed)
HEADERS := $(if $(SERVING),.venv/onnxruntime/include)
# Debian's package of ONNX Runtime's headers: older than the library in the wheel, which takes older callers.
DEB := http://deb.debian.org/debian/pool/main/o/onnxruntime/libonnxruntime-dev_1.21.0+dfsg-1_amd64.deb
DEB_SHA256 := 14f7d959d5deacbcf1504830d4189f91fc67382b399ed9ae9d3aa9c4050ced08

.DEFAULT_GOAL := help
.PHONY: setup demo test lint proof bench-triton soak gpu-check gpu-bench digits lock wheel clean help

setup: $(INSTALLED) $(TRITON) $(HEADERS)  ## create .venv with everything the other targets need (again when pyproject.toml changes)

$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; name one: make setup PYTHON=..." >&2; exit 1; }
	@test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	$(PY) -m pip install --editable '.[dev]'
	@touch $@

# A Triton server and the runtime alone, with the NumPy that this server's Python backend can read.
.venv/triton/installed: pyproject.toml .ci/constraints-triton.txt | $(INSTALLED)
	@test -x .venv/triton/bin/pip || $(PYTHON) -m venv .venv/triton
	PIP_CONSTRAINT=.ci/constraints-triton.txt .venv/triton/bin/pip install --editable .
	PIP_CONSTRAINT=.ci/constraints-triton.txt .venv/triton/bin/pip install --no-deps nvidia-pytriton
	@touch $@

.venv/onnxruntime/include: | $(INSTALLED)
	@rm -rf .venv/onnxruntime && mkdir -p .venv/onnxruntime
	curl --fail --silent --show-error --location --output .venv/onnxruntime/headers.deb $(DEB)
	@echo "$(DEB_SHA256)  .venv/onnxruntime/headers.deb" | sha256sum --check --quiet
	@cd .venv/onnxruntime && ar p headers.deb data.tar.xz | tar --extract --xz --strip-components=2 ./usr/include
	@rm .venv/onnxruntime/headers.deb

demo: setup  ## build the digits bundle and draw a grid with it
	$(PY) -m flowturbo_trt.examples.digits.demo

test: setup  ## run the fast tests, on WORKERS processes (2); make test ARGS=--serving skips none of Triton and C++
	$(PY) -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

# Type checkers do not see `__path__`: they get the installed layout as a folder of links.
lint: setup  ## check style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	@rm -rf $(TYPES) && mkdir -p $(TYPES)
	@$(PY) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"], "benchmarks", "examples")' \
		| xargs -n 1 sh -c 'ln -s ../../../$$1 $(TYPES)/$$1' link
	@ln -s ../../../flowturbo_trt.py $(TYPES)/__init__.py
	cd build/types && ../../$(PY) -m mypy --config-file ../../pyproject.toml --package flowturbo_trt

proof: setup  ## run what is heavy or timed and write benchmarks/results/
	$(PY) -m flowturbo_trt.benchmarks.proof

bench-triton: setup  ## put loads on a Triton server and compare it with the pipeline in process
	$(PY) -m flowturbo_trt.benchmarks.proof triton_load

soak: setup  ## send a Triton server 10,000 mixed requests and compare every image
	$(PY) -m flowturbo_trt.benchmarks.proof triton_soak

# Without setup, which wants a network: what is installed on the GPU's machine is used.
gpu-check:  ## check every backend on this machine's GPU: make gpu-check ARGS="--backend tensorrt-rtx"
	$(GPU_PY) -m flowturbo_trt.benchmarks.gpu_check $(ARGS)

gpu-bench:  ## time them beside torch: make gpu-bench ARGS="--batch 1 --minutes 9"
	$(GPU_PY) -m flowturbo_trt.benchmarks.gpu_bench $(ARGS)

digits: setup  ## train the digits example anew
	$(PY) -m flowturbo_trt.examples.digits.recipe

# Local versions (+cpu) are of one index only.
lock: setup  ## write down the versions in .venv, for CI to install
	@{ head -n 1 .ci/constraints.txt; $(PY) -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > .ci/constraints.new
	@mv .ci/constraints.new .ci/constraints.txt

wheel: setup  ## build the sdist and the wheel into dist/
	rm -rf dist
	$(PY) -m build --no-isolation

clean:  ## remove build products and caches; .venv and out/ stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12
