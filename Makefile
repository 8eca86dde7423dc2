# Everything happens in .venv; stamps in it say what has been installed already.
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV ?= .venv
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check

# No log lines of TensorFlow below errors, unless asked for.
export TF_CPP_MIN_LOG_LEVEL ?= 2

CXX_FILES = $(wildcard custom_ops/*/*.h custom_ops/*/*.inc custom_ops/*/*.cc)

.DEFAULT_GOAL := help
.PHONY: help demo test build lint format bench bazel sanitize clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*##/\1:/p' $(MAKEFILE_LIST) | awk -F: '{printf "  make %-9s%s\n", $$1, $$2}'

demo: $(VENV)/.stamp-demo build  ## install, then train a small net in FP32 and in LNS
	$(PY) examples/demo.py

test: $(VENV)/.stamp-dev build  ## C++ unit tests, then the Python tests
	$(PY) custom_ops/build.py --tests
	$(PY) -m pytest -n $(JOBS)

build: $(VENV)/.stamp-base  ## compile the ops in place (only what changed)
	@$(PY) custom_ops/build.py

lint: $(VENV)/.stamp-dev  ## all static checks
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES)
	$(VENV)/bin/lint-imports

format: $(VENV)/.stamp-dev  ## format Python and C++
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CXX_FILES)

bench: $(VENV)/.stamp-dev build  ## the speed table
	$(PY) benchmarks/run.py

sanitize: $(VENV)/.stamp-base  ## C++ unit tests under ASan and UBSan
	$(PY) custom_ops/build.py --tests --sanitize

bazel: $(VENV)/.stamp-base  ## the same library and C++ tests with bazel
	PYTHON=$(PY) tools/check_bazel.sh

clean:  ## remove what was built (not .venv)
	rm -rf build dist *.egg-info tf_lns/ops/*.so tf_lns/ops/_build_info.py

# Installs are editable and leave the compiling to `make build`, which shows progress.
# That is why setuptools comes first: pip must not set up an isolated build.
INSTALL = TF_LNS_SKIP_OPS=1 $(PIP) install --no-build-isolation -e

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.stamp-base: pyproject.toml setup.py | $(VENV)/bin/python
	$(PIP) install -q "setuptools>=77" wheel
	$(INSTALL) .
	@touch $@

$(VENV)/.stamp-demo: $(VENV)/.stamp-base
	$(INSTALL) ".[demo]" -q
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-base
	$(INSTALL) ".[demo,dev,tensorboard,tfmot]" -q
	@touch $@ $(VENV)/.stamp-demo
