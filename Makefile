# Each recipe does its own set-up; nothing needs to be typed before.
.POSIX:
.SUFFIXES:

PYTHON = python3
BIN = .venv/bin
SEED = 1
# Words for pytest: some files, or what to leave out. `make test` alone runs every test.
TESTS =

# Needs no image, no network beyond the package index and no minutes.
FAST = not slow and not local_model and not sandbox and not network
# Thousands of cases of task sets, scorers and reports, commands started one by one, and training:
# `make test`.
LONG = --ignore=tests/bench --ignore=tests/scoring --ignore=tests/tasks --ignore=tests/cli \
	--ignore=tests/train

.PHONY: help demo test test-sandbox test-long check bench train-nano train-smollm2 clean setup-demo setup-test setup-train

help:
	@echo "make demo   a small real model works in a real sandbox on demo/input"
	@echo "make test   every test (installs what it needs into .venv)"
	@echo "make check  format, lint, types and the fast tests"
	@echo "make bench  measure this machine, against its own floor"
	@echo "make test-long    the smallest recipe with three seeds, and a control that must not learn"
	@echo "make train-nano   teach a tiny model of random weights, on the CPU (a few minutes)"
	@echo "make train-smollm2  teach a small real model to use its computer, on the CPU (two hours)"
	@echo "make clean  remove .venv, caches and what the demo wrote"

demo: setup-demo
	@$(BIN)/python scripts/demo.py

test: setup-test
	$(BIN)/python -m pytest $(TESTS)

# The walls alone, for running them again as another user.
test-sandbox: setup-test
	$(BIN)/python -m pytest tests/sandbox/test_contract.py tests/sandbox/test_engine.py \
		tests/sandbox/test_engine_contract.py tests/adversarial

check: setup-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m "$(FAST)" $(LONG)

bench: setup-train
	$(BIN)/python bench/run.py

# From random weights; ends with an error where the recipe's marks are missed.
train-nano: setup-train
	@$(BIN)/python scripts/train_nano.py 1

test-long: setup-train
	@$(BIN)/python scripts/train_nano.py 1 2 3 --coin

# Warm start, reinforcement, export, and what it bought: before and after on held-out tasks.
train-smollm2: setup-train
	@sh scripts/train-smollm2.sh "runs/train-smollm2-$(SEED)" $(SEED)

setup-demo:
	@PYTHON="$(PYTHON)" sh scripts/setup.sh demo

setup-test:
	@PYTHON="$(PYTHON)" sh scripts/setup.sh test

# Everything that the tests need, and the packages of training (torch): about 1.5 GB more.
setup-train:
	@PYTHON="$(PYTHON)" sh scripts/setup.sh train

clean:
	rm -rf .venv demo-output .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
