# `make test` and `make demo` do all the set-up they need; the second time they start at once.
SHELL := /bin/bash
.DELETE_ON_ERROR:

VENV ?= .venv
BIN := $(VENV)/bin
# the first interpreter of a supported version
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
WORKERS ?= 2
DEMO_OUT ?= demo-out
DEMO_FLAGS ?=
PORT ?= 8000
READY := $(VENV)/.ready
KERNELS := kernels/dq_kernels/_cpu.so
KERNEL_SOURCES := $(foreach d,*/ */*/ */*/*/,$(wildcard $(addprefix kernels/dq_kernels/$(d),*.cpp *.h *.inc))) kernels/dq_kernels/cpu/build.py

OPTIMUM_VENV ?= .venv-optimum
OPTIMUM_INTEL_VENV ?= .venv-optimum-intel
# What was tried. Neither can be installed beside our diffusers. optimum-intel asks for torchvision and does without; its usual
# build does not load beside a torch for the CPU, and then nothing of transformers does.
OPTIMUM := optimum==2.1.0 optimum-onnx==0.1.0 diffusers==0.36.0 transformers==4.57.6 onnxruntime==1.31.1 accelerate
OPTIMUM_INTEL := optimum==2.3.0 optimum-intel==2.2.0 diffusers==0.39.0 transformers==5.5.4 openvino==2026.4.1 accelerate

TRITON_VENV ?= .venv-triton
# A real Triton Inference Server, 2.51, with its python backend; its Python wants numpy below 2.
TRITON := nvidia-pytriton==0.7.0 diffusers==0.42.1 transformers==5.24.0 onnxruntime==1.31.1 'tritonclient[http,grpc]==2.73.0' scipy 'numpy<2'

# Ray, with its own server of HTTP; all else in the versions of constraints.txt
RAY_VENV ?= .venv-ray
RAY := 'ray[serve]==2.60.0'

.PHONY: help setup serve test test-all test-optimum test-triton test-ray test-container demo docs lint format wheel clean

help:
	@echo "make demo    quantize, export, verify, time and sample the demo model into $(DEMO_OUT)/"
	@echo "make serve   serve the text-to-image model that make demo made, on http://127.0.0.1:$(PORT)"
	@echo "make test    the test suite"
	@echo "make test-all  that, the longer tests of what it shows, and every published configuration on both engines; writes docs/configurations.md"
	@echo "make test-optimum  what Optimum draws from our folders, with its packages in two environments of their own"
	@echo "make test-triton  what a real Triton server draws from our repositories, in an environment of its own"
	@echo "make test-ray  the image server on two replicas of Ray Serve, in an environment of its own"
	@echo "make test-container  the container's steps in a clean folder: installs, serves as the compose file says"
	@echo "make docs    build the documentation site into site/"
	@echo "make lint    ruff check, ruff format --check, mypy"
	@echo "make format  let ruff rewrite the tree"
	@echo "make wheel   build the wheel into dist/"
	@echo "make clean   remove what make made, but not $(VENV)"

setup: $(READY) $(KERNELS)

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.13 found; install one or give PYTHON=..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev,docs,openvino,report,quality,tensorrt-rtx,cuda,gpu-kernels,pipelines,serve,otel]'
	@touch $@

# no compiler, no kernels: the rest of the project works without
$(KERNELS): $(KERNEL_SOURCES) | $(READY)
	@$(BIN)/python -m dq_kernels.cpu.build || echo "warning: the native kernels are not up to date" >&2

test: $(READY) $(KERNELS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q -m "not thorough"

test-all: test test-container
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q -m thorough
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.configurations.grid --out docs/configurations.md

test-optimum: $(READY) $(KERNELS) $(OPTIMUM_VENV)/.ready $(OPTIMUM_INTEL_VENV)/.ready
	DQ_OPTIMUM_PYTHON=$(abspath $(OPTIMUM_VENV))/bin/python DQ_OPTIMUM_INTEL_PYTHON=$(abspath $(OPTIMUM_INTEL_VENV))/bin/python \
		OMP_NUM_THREADS=1 $(BIN)/python -m pytest -v -rs tests/pipelines/layouts/test_optimum_packages.py

$(OPTIMUM_VENV)/.ready:
	$(PYTHON) -m venv $(OPTIMUM_VENV)
	$(OPTIMUM_VENV)/bin/python -m pip install --disable-pip-version-check -q torch==2.13.0 $(OPTIMUM)
	@touch $@

$(OPTIMUM_INTEL_VENV)/.ready:
	$(PYTHON) -m venv $(OPTIMUM_INTEL_VENV)
	$(OPTIMUM_INTEL_VENV)/bin/python -m pip install --disable-pip-version-check -q torch==2.13.0 $(OPTIMUM_INTEL)
	-$(OPTIMUM_INTEL_VENV)/bin/python -m pip uninstall -q -y torchvision
	@touch $@

test-triton: $(READY) $(KERNELS) $(TRITON_VENV)/.ready
	DQ_TRITON_PYTHON=$(abspath $(TRITON_VENV))/bin/python OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -v -rs tests/serve/triton/test_real_triton_server.py

$(TRITON_VENV)/.ready:
	$(PYTHON) -m venv $(TRITON_VENV)
	$(TRITON_VENV)/bin/python -m pip install --disable-pip-version-check -q torch==2.13.0 $(TRITON)
	@touch $@

test-ray: $(READY) $(KERNELS) $(RAY_VENV)/.ready
	DQ_RAY_PYTHON=$(abspath $(RAY_VENV))/bin/python OMP_NUM_THREADS=1 $(BIN)/python -m pytest -v -rs tests/serve/test_ray_serve.py

$(RAY_VENV)/.ready:
	$(PYTHON) -m venv $(RAY_VENV)
	$(RAY_VENV)/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[serve,pipelines]' $(RAY)
	@touch $@

test-container: $(READY)
	DQ_CONTAINER_PYTHON=$(PYTHON) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -v -rs tests/packaging/test_container.py

demo: $(READY) $(KERNELS)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python examples/demo.py --out $(DEMO_OUT) $(DEMO_FLAGS)

serve: $(READY) $(KERNELS)
	@test -f $(DEMO_OUT)/prompt.pt || { echo "error: $(DEMO_OUT)/prompt.pt is not there; run make demo first" >&2; exit 2; }
	$(BIN)/dq-serve --model examples/emoji-text-to-image --engine $(DEMO_OUT)/prompt.pt --port $(PORT)

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "the site is in site/: open site/index.html"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: $(READY)
	$(BIN)/python -m pip wheel --disable-pip-version-check -q --no-deps -w dist .

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis site $(DEMO_OUT)
