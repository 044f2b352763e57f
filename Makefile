# `make demo` and `make test` set everything up in .venv first; they need Python ≥ 3.11, make and pip.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.done
EXTRAS := --extra demo --extra pretrained --extra build --extra serve --extra transformers --extra onnx --extra ray \
	--extra parquet --extra slides --extra video --extra heif --extra wandb --extra mlflow --extra measure \
	--extra supervision --extra docs --extra test
LOCK := --universal --generate-hashes --no-emit-index-url --no-header
# A process per core, at most four, and one thread per process: the tests' tensors are small. A file stays in one process.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

.PHONY: help demo docs test test-slow lock clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' Makefile

demo: $(SETUP) ## segment real images with the shipped models; results in out/demo
	$(BIN)/python examples/demo.py

docs: $(SETUP) ## build the documentation site in build/docs/site, without network
	$(BIN)/python docs/site/build.py

test: $(SETUP) ## lint, types and the quick tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(TEST) -m "not slow"

test-slow: $(SETUP) ## tests that train for minutes
	$(TEST) -m slow

lock: ## pin what the commands install, without index addresses
	$(BIN)/uv pip compile -q $(LOCK) $(EXTRAS) pyproject.toml -o requirements.lock
	echo uv | $(BIN)/uv pip compile -q $(LOCK) --python-version 3.11 - -o requirements-uv.lock

$(SETUP): requirements-uv.lock requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("refine needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-uv.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

clean: ## remove .venv, build and out
	rm -rf .venv build out
