# make help lists the targets. VENV and PYTHON may be set: make test VENV=/path PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint types docs check quality bench vectors fuzz train clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## a virtual environment with everything

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: setup ## code a photograph at three lambda, beside JPEG: make demo PHOTO=mine.jpg
	$(BIN)/python -m cdcodec.lab.demo $(PHOTO)

test: setup ## the tests, under three minutes
	$(BIN)/python -m pytest -q

test-slow: setup ## the tests that take minutes
	$(BIN)/python -m pytest -q -m slow

lint: setup ## ruff
	$(BIN)/ruff check cdcodec tests

types: setup ## mypy
	$(BIN)/mypy

docs: setup ## README, help texts and SPEC say what is true
	$(BIN)/python -m pytest -q tests/test_docs.py tests/test_spec.py

check: lint types test ## all of it

clean: ## what can be made again
	rm -rf $(VENV) build dist demo .pytest_cache .mypy_cache .ruff_cache
