# `make demo` and `make test` do everything on a fresh machine: virtual environment, installation, run.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
# For example: make test PYTEST_ARGS="tests/test_rows.py -x"; with PYTEST_ARGS='-m ""' the slow tests run too.
PYTEST_ARGS ?=
BENCHMARKS := choices encode faults metrics monitoring new_tokens new_tokens_lm scaling senses sentence sst2 wiktionary wordsim

RUN := $(VENV)/bin/python

.DELETE_ON_ERROR:
.NOTPARALLEL: # benchmarks must not share the processor
.PHONY: help demo test lint bench clean wordnet deepspeed $(BENCHMARKS:%=bench-%)

help:
	@echo "make demo   rebuild real embeddings in a real Trainer run and show what that changed"
	@echo "make test   the tests and doctests, all but the slow ones"
	@echo "make lint   ruff, mypy and the order of imports"
	@echo "make deepspeed  what the tests of DeepSpeed need, which skip otherwise"
	@echo "make bench  every benchmark; make bench-metrics: one of: $(BENCHMARKS)"
	@echo "make clean  remove what these made, $(VENV) included"

demo: wordnet $(VENV)/.installed-demo
	$(RUN) examples/run_supersense.py

test: wordnet $(VENV)/.installed-test
	$(RUN) -m pytest $(PYTEST_ARGS)

# In a folder of its own, which the tests of DeepSpeed alone look into: where it is installed, accelerate imports it into
# every process. It builds with the setuptools and torch that are there, and compiles nothing.
deepspeed: $(VENV)/deepspeed/deepspeed
$(VENV)/deepspeed/deepspeed: | $(VENV)/.installed-test
	$(RUN) -m pip install --disable-pip-version-check --upgrade "setuptools>=77" wheel
	DS_BUILD_OPS=0 $(RUN) -m pip install --disable-pip-version-check --no-build-isolation --no-deps \
		--target $(VENV)/deepspeed deepspeed einops hjson msgpack ninja py-cpuinfo

lint: $(VENV)/.installed-test
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports --no-logo --no-cache

bench: $(BENCHMARKS:%=bench-%)

$(BENCHMARKS:%=bench-%): bench-%: $(VENV)/.installed-test
	$(RUN) benchmarks/$*.py

# Where apt-get can install it; elsewhere the `wn` library of the extra downloads it on first use.
wordnet:
	@if [ -z "$$WORDNET_DIR" ] && [ ! -d /usr/share/wordnet ] && command -v apt-get >/dev/null; then \
		as_root=$$([ "$$(id -u)" = 0 ] || echo sudo); \
		$$as_root apt-get update -qq && $$as_root apt-get install -y -qq --no-install-recommends wordnet-base; \
	fi

clean:
	rm -rf $(VENV) build dist src/*.egg-info outputs .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

# One stamp for each extra: nothing is installed again until one of these files changes.
$(VENV)/.installed-%: $(VENV)/pyvenv.cfg setup.cfg pyproject.toml $(CONSTRAINTS)
	$(RUN) -m pip install --disable-pip-version-check $(CONSTRAINTS:%=--constraint %) --editable ".[$*]"
	touch $@

.PRECIOUS: $(VENV)/.installed-%
