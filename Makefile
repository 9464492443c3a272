# make demo   sets everything up and evolves the quickstart merge
# make test   sets everything up and passes the tests
# make docs   builds the documentation into site/; a warning or a dead link ends it
# Needs Python 3.10 to 3.13 and make; everything else goes into .venv.

FITS := 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13 python3.10; do \
  $$p -c $(FITS) 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 WANDB_MODE=offline TOKENIZERS_PARALLELISM=false

.PHONY: demo test docs clean

demo: .venv/ready
	$(BIN)/evomerge search experiment=quickstart

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(OFFLINE) $(BIN)/pytest -n 2

docs: .venv/ready-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Without torch: pages are made from files alone.
.venv/ready-docs: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "evomerge needs Python 3.10 to 3.13: make PYTHON=path/to/python"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt "$$(sed -n 's/^docs = \["\(.*\)"\].*/\1/p' pyproject.toml)"
	@touch $@

# The stamp is newer than what it was made from, so a second call does nothing. Where there is no
# CUDA device, a CPU build of torch is tried first: from the configured index, then from PyTorch's
# own; pip keeps whichever it finds, and otherwise takes the ordinary release.
.venv/ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "evomerge needs Python 3.10 to 3.13: make PYTHON=path/to/python"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@if [ "$$(uname)" = Linux ] && ! nvidia-smi -L >/dev/null 2>&1 && ! $(BIN)/python -c 'import torch' 2>/dev/null; then \
	  torch=$$(sed -n 's/^torch==//p' constraints.txt); \
	  $(BIN)/pip install -q "torch==$$torch+cpu" 2>/dev/null \
	  || $(BIN)/pip install -q --retries 0 --timeout 15 "torch==$$torch" --index-url https://download.pytorch.org/whl/cpu 2>/dev/null \
	  || echo "no CPU build of torch $$torch found: taking the ordinary release"; \
	fi
	$(BIN)/pip install -q -c constraints.txt -e '.[dev,launchers,dp,ray]'
	@touch $@

clean:
	rm -rf .venv
