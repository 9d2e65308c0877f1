# The two commands of the README are `make demo` and `make test`. A second run reuses .venv.

PYTHON ?= python3
BIN := .venv/bin
# pytest-xdist workers: two, or fewer cores' worth.
WORKERS ?= 2
PHOTOS := $(wildcard models/assets/photos/*.jpg models/assets/photos/*.png)

.PHONY: demo test test-slow test-gpu lint clean

demo: .venv/compile
	$(BIN)/intswin compile
	$(BIN)/intswin predict $(PHOTOS)
	$(BIN)/intswin bench --variants relu,igelu --rounds 30

# Each worker runs compiled code: without a limit they would fight for the cores, also by spinning.
test: .venv/dev
	OMP_WAIT_POLICY=PASSIVE \
	TVM_NUM_THREADS=$${TVM_NUM_THREADS:-2} OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} \
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not gpu and not slow" --durations=15

test-slow: .venv/dev
	$(BIN)/python -m pytest -q -m slow

# On a machine with a GPU, one test after the other; elsewhere each says why it is skipped.
test-gpu: .venv/dev
	$(BIN)/python -m pytest -q -rs -m gpu tests/gpu

lint: .venv/dev .venv/typed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	MYPYPATH=.venv/typed $(BIN)/mypy -p intswin

clean:
	rm -rf .venv out

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("intswin needs Python 3.10 or newer, PYTHON=... chooses it") if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv .venv

# mypy does not see through an editable installation: links show it the package's layout.
.venv/typed: | .venv/bin/python
	mkdir -p $@/intswin
	ln -sfn ../../../compile $@/intswin/compile
	ln -sfn ../../../models $@/intswin/models

# Editable, so that a change of the code needs no second installation.
.venv/compile: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[compile]"
	@touch $@

.venv/dev: .venv/compile
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[compile,cuda12,dev]"
	@touch $@
