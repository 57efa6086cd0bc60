# Fresh machine, two commands: `make demo` and `make test`. Both do their own set-up: a virtual environment in .venv, torch, the
# package with its CPU extension (without build isolation: an isolated build's objects name headers that are gone afterwards, and
# would be compiled again). Needs only Python >= 3.10, a C++17 compiler and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Without an NVIDIA GPU one pinned CPU build is used; library users are free in the range that pyproject.toml states.
TORCH ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo 'torch>=2.9' || echo 'torch==2.13.0')
NATIVE_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')
FORMATTED := 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.inl' 'csrc/*.cu' 'csrc/*.cuh' 'tests/*.cpp' 'tests/*.cu' 'tests/native/cuda*.h'

.PHONY: demo test lint types format native cuda bench gpu clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/' | sort

demo: $(VENV)/ready  ## complete Python code with the bundled pair, plain and speculative
	@$(BIN)/python -m sdengine.cli.demo

test: $(VENV)/ready  ## run the test suite
	$(BIN)/python -m pytest

lint: $(VENV)/ready  ## style of Python and C++
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files $(FORMATTED))

types: $(VENV)/ready  ## static types of the core
	$(BIN)/mypy

format: $(VENV)/ready  ## rewrite sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files $(FORMATTED))

bench: $(VENV)/ready  ## microbenchmarks of every op, beside the machine's limits
	$(BIN)/python -m benchmarks.kernels

# Sets nothing up: a machine with a GPU may have no network, and a torch of its own.
gpu:  ## everything that needs a GPU: build, tests, sanitizers, benchmarks; ARGS="--minutes 9 --out DIR"
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu_suite $(ARGS)

native: $(VENV)/ready  ## rebuild the CPU extension (and the CUDA library where there is a GPU) after a change in csrc/

cuda: $(VENV)/installed  ## build the CUDA library, GPU or not; needs nvcc
	SDENGINE_BUILD_CUDA=1 $(BIN)/python setup.py -q build_ext --inplace

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build kernels/*.so *.egg-info

$(VENV)/installed: pyproject.toml setup.py
	@echo "Setting up $(VENV), once: PyTorch, tools and the compiled kernels take a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check '$(TORCH)' 'setuptools>=68' wheel 'pybind11>=2.12'
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation -e '.[dev]'
	@touch $@

$(VENV)/ready: $(VENV)/installed $(NATIVE_SOURCES)
	$(BIN)/python setup.py -q build_ext --inplace
	@touch $@
