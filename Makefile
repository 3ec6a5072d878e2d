# make demo: the whole pipeline on the demo world, with a control.  make test: lint, types and all tests.
# Each sets up .venv when it is missing or older than pyproject.toml.
PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash

.PHONY: demo test lint clean

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: .venv/.ready
	$(BIN)/occ-dump
	$(BIN)/occ-train-student experiment=demo_few_labels_control
	$(BIN)/occ-train-student experiment=demo_few_labels
	$(BIN)/occ-eval checkpoint=runs/demo/demo-kd_balanced_pseudo-seed0/last.pt sources=[runs/demo/demo-kd_none-seed0/last.pt]

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# two files at a time, each test on one thread (tests/conftest.py)
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf .venv runs stores data build *.egg-info
