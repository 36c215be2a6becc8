# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Two processes, a file each: much of the suite waits for servers and workers to start.
# Threads that wait for each other sleep: where processes share the cores, they would spin through each other's turns.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder
.PHONY: demo test test-fast test-numeric fuzz lint format bench-train bench-model bench-mup kill-matrix lock audit licences clean

demo: .venv/.installed            ## install, then the whole line: raw text to a registered model
	$(BIN)/tokenmill run flows/recipes/demo.toml

test: .venv/.installed-dev .venv-s3/.installed   ## the whole suite, with a real S3-compatible server
	$(PYTEST) $(ARGS)

test-fast: .venv/.installed-dev   ## what needs no server and no whole line
	$(PYTEST) -m "not slow" $(ARGS)

# What changes the order in which a processor adds up: torch's kernels, MKL's and oneDNN's.
ROUNDINGS := ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 \
	MKL_ENABLE_INSTRUCTIONS=SSE4_2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2

test-numeric: .venv/.installed-dev   ## the model's mathematics as other processors would round it
	for rounding in $(ROUNDINGS); do echo "$$rounding"; env $$rounding $(PYTEST) tests/model $(ARGS) || exit 1; done

CASES ?= 100000
fuzz: .venv/.installed-dev        ## hostile names in manifests, tokenizers, indexes and configs, under a watch of the file system
	$(BIN)/python -m tests.fuzz_names --cases $(CASES)

lint: .venv/.installed-dev        ## ruff, pyright, what nothing uses, and the order of rooms: one way, no circles
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/vulture
	$(BIN)/pyright

format: .venv/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-train: .venv/.installed     ## tokens/s inside a Ray Train worker against the same model in a bare torch loop
	$(BIN)/python -m tests.benchmarks.train

bench-model: .venv/.installed-dev .bench/.installed   ## what the model's parts cost, against transformers, litgpt and the machine
	PYTHONPATH=.bench $(BIN)/python -m tests.benchmarks.model

bench-mup: .venv/.installed       ## muP: a coordinate check over widths, and a sweep of learning rates at three of them
	$(BIN)/python -m tests.benchmarks.mup

kill-matrix: .venv/.installed-dev .venv-s3/.installed   ## each process of a run is killed in each stage: docs/kill-matrix.md
	$(BIN)/python -m tests.kill_matrix $(ARGS)

lock: .venv/.installed-dev        ## rewrite constraints.txt from what is installed
	$(BIN)/pip freeze --exclude-editable --exclude pip --exclude setuptools | sed 's/+cpu//' > constraints.txt

audit: .venv-audit/.installed     ## what is known against the packages of constraints.txt; fails where nobody answers
	.venv-audit/bin/python infra/audit/audit.py constraints.txt $(ARGS)

licences: .venv/.installed-dev    ## rewrite docs/licences.md from what is installed
	$(BIN)/python -m tests.licences > docs/licences.md

.venv/bin/pip:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/pip
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.venv-s3/.installed: infra/s3/install.sh infra/s3/requirements.txt
	PYTHON=$(PYTHON) bash infra/s3/install.sh
	touch $@

.venv-audit/.installed: infra/audit/requirements.txt
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install -q --disable-pip-version-check -r infra/audit/requirements.txt
	touch $@

.bench/.installed:
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --target .bench \
		litgpt==0.5.13 lightning==2.6.6 lightning-utilities==0.15.3 torchmetrics==1.9.0 jsonargparse==4.53.0
	touch $@

clean:                            ## what runs leave in this folder: store, tracking, logs
	rm -rf store mlruns mlartifacts mlflow.db logs
