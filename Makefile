# Every target sets up what it needs; nothing needs root. A second run does only what changed.
#
#   make demo [DATA=DIR] [K=2000] [FRESH=1]   the main job, end to end, on real data
#   make test [DATA=DIR] [ARGS='-k topk']     every test, C++ and Python
#   make check                                format, lint, types, floors, protos, what deploys it
#   make check-sanitize                       the C++ tests under address, undefined-behaviour and thread sanitizers
#   make fuzz [SECONDS=60]                    what reads saved bytes, by libFuzzer (CXX_CLANG=... picks the clang++)
#   make bench-topk [ARGS='--quick']          the top-K beside a plain scan and its rivals (benchmarks/README.md)
#   make bench-ingest [ARGS='--users 2e7']    Parquet to a pool beside a plain read (benchmarks/README.md)
#   make bench-billion [ARGS='--users 1e8']   one expansion over 10^9 users; 25 GB of disk (benchmarks/README.md)
#   make bench-score [ARGS='--case lean']    users/s of the native engine beside PyTorch (benchmarks/README.md)
#   make bench-realtime [ARGS='--rate 50']    waits for scores of 100 users under load (benchmarks/README.md)
#   make bench-train [ARGS='--data DIR']      a training step beside a plain one (benchmarks/README.md)
#   make bench-front [ARGS='--rates 100,200'] orders a second, streams of members (benchmarks/README.md)
#   make loadtest [ARGS='--scenario burst']   open-loop load on a service of its own, judged by limits (docs/capacity.md)
#   make bench-kernels                        the scan kernels; needs Google Benchmark (Debian: libbenchmark-dev)
#   make setup                                only the set-up; then: . .venv/bin/activate
#   make chaos [ARGS='--seed 7']              200 expansions while everything is killed; nothing may be lost
#   make format  make serve  make clean
#
# PYTHON=... picks the interpreter (3.11 or newer), CXX=... the C++20 compiler.

PYTHON ?= $(firstword $(shell command -v python3.11 python3) python3)
ifeq ($(origin CXX),default)
CXX := c++
endif
export CXX

VENV   := .venv
BIN    := $(VENV)/bin
STAMPS := $(VENV)/stamps
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# The venv's cmake, ninja and protoc plugins, whatever else the machine has.
export PATH := $(CURDIR)/$(BIN):$(PATH)

CPP_FILES   := $(shell find csrc -name '*.h' -o -name '*.cpp')
CPP_EXAMPLES := $(wildcard examples/cpp/*.cpp)
BUILD_FILES := setup.py CMakeLists.txt $(CPP_FILES) $(shell find csrc cmake -name CMakeLists.txt -o -name '*.cmake*' 2>/dev/null)
PROTO_FILES := $(shell find protos -type f)
PYTHON_DIRS := python/lookalike handlers protos/generate.py examples loadtests chaos benchmarks setup.py

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-cpp test-python check check-sanitize bench-topk bench-ingest bench-billion bench-score bench-realtime bench-train bench-front bench-kernels format fuzz serve loadtest chaos clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' $(firstword $(MAKEFILE_LIST))

setup: $(STAMPS)/package

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo 'lookalike needs Python 3.11 or newer: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@echo 'int main() {}' | $(CXX) -std=c++20 -fsyntax-only -x c++ - 2>/dev/null \
	  || { echo 'lookalike needs a C++20 compiler, such as g++ 12: make CXX=/path/to/g++' >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
	  || { echo 'lookalike needs the headers of $(PYTHON) (Debian: python3-dev)' >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) >/dev/null \
	  || { echo 'cannot make a virtual environment: install the venv module of $(PYTHON) (Debian: python3-venv)' >&2; exit 1; }
	@mkdir -p $(STAMPS) && touch $@

# Requirements first and the package after them, without build isolation: pip would otherwise fetch the build's own
# copy of each.
$(STAMPS)/requirements: $(STAMPS)/venv pyproject.toml constraints.txt
	@echo 'installing requirements into $(VENV) ...'
	@$(BIN)/python -c 'import itertools, tomllib; p = tomllib.load(open("pyproject.toml", "rb")); \
	  print(*p["build-system"]["requires"], *p["project"]["dependencies"], \
	  *itertools.chain(*p["project"]["optional-dependencies"].values()), sep="\n")' > $(STAMPS)/requirements.txt
	@$(PIP) install --quiet --prefer-binary -c constraints.txt -r $(STAMPS)/requirements.txt
	@touch $@

$(STAMPS)/package: $(STAMPS)/requirements $(BUILD_FILES) $(PROTO_FILES)
	@echo 'building lookalike ...'
	@$(PIP) install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

demo: $(STAMPS)/package
	@$(BIN)/python examples/demo.py $(if $(DATA),--data '$(DATA)') $(if $(K),--k $(K)) $(if $(FRESH),--fresh)

test: test-cpp test-python

test-cpp: $(STAMPS)/requirements
	@cmake -S . -B build/cmake -G Ninja -DCMAKE_BUILD_TYPE=Release -DLOOKALIKE_BUILD_TESTS=ON -DLOOKALIKE_WERROR=ON \
	  -DPython_EXECUTABLE='$(CURDIR)/$(BIN)/python' > $(STAMPS)/cmake.log || { cat $(STAMPS)/cmake.log; exit 1; }
	@cmake --build build/cmake
	@ctest --test-dir build/cmake --output-on-failure

# Containers often set PYTHONDONTWRITEBYTECODE, with which every program that a test starts compiles all it imports.
test-python: $(STAMPS)/package
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile $(if $(DATA),--data='$(DATA)') $(ARGS)

check: $(STAMPS)/package
	ruff format --check .
	ruff check .
	mypy $(PYTHON_DIRS)
	cd python && lint-imports --config ../pyproject.toml
	clang-format --dry-run -Werror $(CPP_FILES) $(CPP_EXAMPLES)
	python protos/generate.py --descriptors build/protos.binpb
	buf lint build/protos.binpb --config protos/buf.yaml
	yamllint --strict deploy
	check-jsonschema --quiet --builtin-schema vendor.compose-spec deploy/container/compose.yaml
	hadolint deploy/container/Containerfile

check-sanitize: $(STAMPS)/requirements
	@csrc/tests/sanitize.sh address,undefined
	@csrc/tests/sanitize.sh thread

format: $(STAMPS)/requirements
	ruff format .
	ruff check --fix .
	clang-format -i $(CPP_FILES) $(CPP_EXAMPLES)

SECONDS   ?= 60
CXX_CLANG ?= $(firstword $(shell command -v clang++) $(shell command -v clang++-14))

fuzz: $(STAMPS)/requirements
	@echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }' \
	  | $(or $(CXX_CLANG),false) -fsanitize=fuzzer,address,undefined -x c++ -o /dev/null - 2>/dev/null \
	  || { echo 'make fuzz needs clang and its libFuzzer (Debian: clang, libclang-rt-14-dev), or: make fuzz CXX_CLANG=/path/to/clang++' >&2; exit 1; }
	@cmake -S . -B build/fuzz -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_COMPILER='$(CXX_CLANG)' \
	  -DLOOKALIKE_BUILD_FUZZERS=ON -DLOOKALIKE_BUILD_TESTS=OFF > $(STAMPS)/fuzz.log || { cat $(STAMPS)/fuzz.log; exit 1; }
	@cmake --build build/fuzz
	@mkdir -p build/fuzz/corpus
	@build/fuzz/csrc/fuzz/fuzz_partial build/fuzz/corpus -max_total_time=$(SECONDS) -artifact_prefix=build/fuzz/

serve: $(STAMPS)/package
	@$(BIN)/python examples/demo.py $(if $(DATA),--data '$(DATA)') --serve

bench-topk: $(STAMPS)/package
	@$(call build-bench,bench_topk)
	@$(BIN)/python benchmarks/topk.py $(ARGS)

bench-ingest: $(STAMPS)/package
	@$(BIN)/python benchmarks/ingest.py $(ARGS)

bench-billion: $(STAMPS)/package
	@$(BIN)/python benchmarks/billion.py $(ARGS)

bench-score: $(STAMPS)/package
	@$(BIN)/python benchmarks/score.py $(ARGS)

bench-realtime: $(STAMPS)/package
	@$(BIN)/python benchmarks/realtime.py $(ARGS)

bench-train: $(STAMPS)/package
	@$(BIN)/python benchmarks/train.py $(ARGS)

bench-front: $(STAMPS)/package
	@$(BIN)/python benchmarks/front.py $(ARGS)

bench-kernels: $(STAMPS)/requirements
	@$(call build-bench,bench_kernels)
	@build/bench/csrc/bench/bench_kernels $(ARGS)

define build-bench
cmake -S . -B build/bench -G Ninja -DCMAKE_BUILD_TYPE=Release -DLOOKALIKE_BUILD_TESTS=OFF \
  -DLOOKALIKE_BUILD_BENCHMARKS=ON > $(STAMPS)/bench.log || { cat $(STAMPS)/bench.log; exit 1; }; \
cmake --build build/bench --target $(1)
endef

loadtest: $(STAMPS)/package
	@$(BIN)/python loadtests/run.py $(ARGS)

chaos: $(STAMPS)/package
	@$(BIN)/python chaos/chaos.py $(ARGS)

clean:
	rm -rf build dist .venv .demo model_store/*.mar loadtests/results python/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find python -name '*_pb2*.py*' -delete -o -name '*.so' -delete
