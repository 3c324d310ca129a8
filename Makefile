# make help lists the targets. VENV and PYTHON may be set: make test VENV=/path PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint types docs check vectors peers quality rates bench fuzz kills train clean

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

docs: setup ## docs/api.md is made from the docstrings; README, help texts and SPEC say what is true
	$(BIN)/python docs/make.py --check
	$(BIN)/python -m pytest -q tests/test_docs.py tests/test_spec.py

check: lint types test ## all of it, docs among the tests, under ten minutes

vectors: setup ## the golden files in tests/vectors/golden, after the weights have changed
	$(BIN)/python tests/golden.py

# IMAGES: a folder of photographs; METRICS: the folder with the networks of LPIPS (--metric-weights)
IMAGES ?= photographs
METRICS ?=
EVAL := $(if $(METRICS),--metric-weights $(METRICS))

peers: setup ## what other codecs do on IMAGES, kept in results/peers.jsonl
	$(BIN)/cdcodec eval $(IMAGES) $(EVAL) --preset quality --model none -o runs/peers --resume --jobs 2
	mkdir -p results && cp runs/peers/results.jsonl results/peers.jsonl

quality: setup ## the table of README on IMAGES (an hour or more for 27 megapixels): make quality IMAGES=valid METRICS=lpips
	$(BIN)/cdcodec eval $(IMAGES) $(EVAL) --preset quality -o results/quality --force --reuse results/peers.jsonl --jobs 2
	$(BIN)/python -m cdcodec.lab.readme results/quality README.md

rates: setup ## on IMAGES, real bytes beside the model's estimate, and how well wished sizes are met
	$(BIN)/python tests/rate_figures.py $(IMAGES)
	$(BIN)/python tests/target_figures.py $(IMAGES) --weights weights

bench: setup ## seconds of encode, decode and info on this machine; a batch against the network alone
	$(BIN)/python -m cdcodec.lab.bench
	$(BIN)/python -m cdcodec.lab.throughput --count 100

fuzz: setup ## mutated files through parser and decoder
	$(BIN)/python tests/fuzz_container.py --runs 200000
	$(BIN)/python tests/fuzz_decode.py --runs 5000

kills: setup ## encode, decode, train and eval killed 300 times at random moments
	$(BIN)/python tests/kills.py --count 300

# TRAIN: what to make of the recipes, such as "--scale 0.1 --batch 8". Given again, it goes on with a run of compact-x
# that was stopped, by the recipe that it began with.
TRAIN ?=
BEGIN = $(if $(wildcard runs/compact-x/state.pt),--resume,$(TRAIN))

train: setup ## new weights from a folder of photographs: make train IMAGES=photos VALID=held-out METRICS=lpips
	$(BIN)/cdcodec train --images $(IMAGES) --out runs/compact-x $(BEGIN) $(if $(VALID),--valid $(VALID)) $(EVAL)
	$(BIN)/cdcodec export --force runs/compact-x runs/weights $(if $(VALID),--valid $(VALID))
	$(BIN)/python -m cdcodec.lab.judge runs/weights/compact-x $(EVAL)
	rm -rf runs/compact-eps
	$(BIN)/cdcodec train --images $(IMAGES) --out runs/compact-eps --recipe compact-eps --start runs/weights $(TRAIN)
	$(BIN)/cdcodec export --force runs/compact-eps runs/weights

clean: ## what can be made again
	rm -rf $(VENV) build dist demo .pytest_cache .mypy_cache .ruff_cache
