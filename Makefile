# Everything from the repository: each target sets up what it needs on a fresh machine (Python 3.11+, make, git).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1

.PHONY: help install demo test check bench clean
help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

install: $(VENV)/.installed  ## create .venv and install the pinned set
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("OXA needs Python 3.11 or newer; name one: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): about 2 GB, a few minutes"
	# torch first and pinned: asked for as another package's need, pip would take a CUDA build of several gigabytes
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install  ## run the whole pipeline on params.yaml and print the comparison of the arms
	oxa run
	@oxa summary
	@echo "The report: reports/table.md and the plots beside it; numbers in metrics/summary.json"

test: install  ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: install  ## lint and type-check
	ruff check .
	ruff format --check .
	mypy

bench: install  ## measure against other ways of doing it (see benchmarks/RESULTS.md)
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:  ## remove what the pipeline made (DVC's cache stays, `oxa run` brings it back; so do MLflow's and Prefect's records)
	rm -rf data models metrics reports .work
