# `make demo` and `make test` need python3 (3.11 or newer), python3-venv and make; they put
# everything else, in the versions of the lock files, into .venv. Tests also drive Chromium and
# Prometheus: .ci/programs gets them with apt-get where they are missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet

# PyPI's torch for Linux brings 3 GB of CUDA libraries. Without a GPU, take the CPU build from
# PyTorch's own index, unless that can't be reached.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
CAN_REACH := timeout 10 $(BIN)/python -c \
	'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)'

.PHONY: demo test lint bench chaos rollout-crash clean lock

demo: $(VENV)/.runtime
	$(BIN)/trt-mtp demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	@set -e; for file in benchmarks/[!_]*.py; do \
		echo "== $$file"; $(BIN)/python -m benchmarks.$$(basename $$file .py); \
	done

# make chaos ARGS='--json --seed 7': a thousand faults while clients ask
chaos: $(VENV)/.dev
	$(BIN)/python -m tests.chaos $(ARGS)

# a rollout is killed at every point of its record, then called again
rollout-crash: $(VENV)/.dev
	@$(BIN)/python -m benchmarks.rollout_crash $(ARGS)

# build/ is source: never remove it here
clean:
	rm -rf $(VENV) dist engines .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.runtime: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("trt-mtp needs Python 3.11 or newer, $(PYTHON) is " \
		+ sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@echo "installing requirements.lock"
	@$(PIP) -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@$(BIN)/python -c 'from trt_mtp.serve.triton_install import find_triton; find_triton()' \
		2>/dev/null || $(FETCH_LIBPYTHON)
	@touch $@

# Triton's python backend is linked with the shared libpython, which Debian's python3 lacks. Take it
# out of its package, which needs no root; what is missing then is said when Triton is started.
FETCH_LIBPYTHON = ( \
	mkdir -p $(VENV)/deb && cd $(VENV)/deb && \
	name=libpython$$(../bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])') && \
	{ apt-get download -qq $$name 2>/dev/null \
		|| { apt-get update -qq && apt-get download -qq $$name; }; } && \
	dpkg -x $$name*.deb . && cp -L usr/lib/*/$$name.so.1.0 ../lib/ ) \
	|| echo "could not fetch the shared libpython; trt-mtp serve will say what to install"

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	@echo "installing requirements-dev.lock"
	@index=""; \
	if ! command -v nvidia-smi >/dev/null && $(CAN_REACH) $(TORCH_INDEX)/torch/ 2>/dev/null; then \
		index="--extra-index-url $(TORCH_INDEX)"; \
	fi; \
	$(PIP) -r requirements-dev.lock $$index
	@.ci/programs
	@$(BIN)/python -m benchmarks.perf_analyzer --fetch
	@touch $@

# The newest versions that pyproject.toml allows, tried together, written as lock files.
lock:
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-lock/bin/python -m pip install --quiet . hatchling
	@(echo '# Exact versions of what trt-mtp runs on, and of hatchling, which installs it.' \
		'Made by `make lock`.'; $(call FROZEN)) > requirements.lock
	$(VENV)-lock/bin/python -m pip install --quiet --group dev
	@(echo '# Exact versions of what tests, lint and benchmarks need on top. Made by `make lock`.'; \
		echo '# torch has no build tag: the Makefile decides where it comes from (CONTRIBUTING.md).'; \
		echo '-r requirements.lock'; \
		$(call FROZEN,--all --exclude pip) | grep -vxFf requirements.lock) > requirements-dev.lock
	rm -rf $(VENV)-lock
# without ourselves, torch's build tag and its CUDA libraries; --all is for setuptools, which torch
# needs and pip hides
FROZEN = $(VENV)-lock/bin/python -m pip freeze --exclude trt-mtp $(1) \
	| sed -E 's/\+(cpu|cu[0-9]+)$$//; /^(nvidia-.*-cu[0-9]+|nvidia-cu|cuda-|triton=)/d'
