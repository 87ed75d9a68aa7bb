# The commands of this repo. A fresh machine needs Python 3.11 or newer, pip and make: each target
# sets up `.venv` itself, from tests/constraints/core.txt, and does so again only when that changed.
# Each orchestrator has an environment of its own, `.venv-airflow` and so on: no two of them fit into one.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
ARGS   ?=
SECONDS ?= 600
ROWS   ?= 200000
KEYS   ?= 2000000

BIN         := $(VENV)/bin
READY       := $(VENV)/.ready-core
CONSTRAINTS := tests/constraints/core.txt
# All of the core's extras but `spark`.
EXTRAS      := adbc all azure delta gcs iceberg otel postgres s3 sqlite
# Two workers: what CI has. Each test may still start a router of its own.
PYTEST      := -m pytest -n 2 --dist loadgroup

# B608 is ruff's S608, which wants a reason beside each statement that is put together.
BANDIT      := --quiet --recursive --severity-level medium --skip B608

# The packages for orchestrators: a name, and its folder. Tests stand in tests/on_<name>, versions in
# tests/constraints/<name>.txt, settings of its tools in the folder's own pyproject.toml.
FOLDER_airflow := airflow_provider
FOLDER_dagster := dagster_batchrouter
FOLDER_prefect := prefect_batchrouter
MEMBERS := $(foreach name,airflow dagster prefect,$(if $(wildcard $(FOLDER_$(name))/pyproject.toml),$(name)))
# Apache Spark is part of the core, in an environment of its own: it wants other versions, and a Java.
SPARK_PYTEST := .venv-spark/bin/python $(PYTEST)
PYTEST_OF = .venv-$*/bin/python $(PYTEST) --config-file $(FOLDER_$*)/pyproject.toml --rootdir .

.DEFAULT_GOAL := help
.PHONY: help demo test test-core check check-core audit format bench drills drills-core fuzz kernel-wheels constraints \
	constraints-core setup clean
.SECONDARY: $(MEMBERS:%=.venv-%/.ready)

help: ## what there is
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## the whole story on a bundled table: no account, no network, under a minute
	@$(BIN)/batchrouter demo $(ARGS)

test: test-core test-spark $(MEMBERS:%=test-%) ## all tests but the drills

test-core: $(READY) ## unit, router and end-to-end tests, and every example in a docstring; ARGS="-k name"
	$(BIN)/python $(PYTEST) -m "not drill" core/src tests $(ARGS)

test-%: .venv-%/.ready ## the tests of one package, beside its real orchestrator: test-airflow, …; ARGS="-k name"
	$(PYTEST_OF) -m "not drill" $(FOLDER_$*)/src tests/on_$* $(ARGS)

test-spark: .venv-spark/.ready
	$(SPARK_PYTEST) -m "not drill" tests/on_spark $(ARGS)

check: check-core check-spark $(MEMBERS:%=check-%) ## lint, format, types (pyright strict) and the layers between the rooms

check-%: .venv-%/.ready $(READY)
	cd $(FOLDER_$*) && ../$(BIN)/pyright --pythonpath ../.venv-$*/bin/python
	.venv-$*/bin/lint-imports $(FOLDER_$*)/pyproject.toml

check-spark: .venv-spark/.ready $(READY)
	$(BIN)/pyright --pythonpath .venv-spark/bin/python core/src/batchrouter/spark

check-core: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/bandit $(BANDIT) core/src kernel/src $(foreach name,$(MEMBERS),$(FOLDER_$(name))/src)

audit: $(READY) ## what bandit and pip-audit say; the second asks an advisory database over the network
	$(BIN)/bandit $(BANDIT) core/src
	$(BIN)/pip-audit --strict --requirement $(CONSTRAINTS) --no-deps --disable-pip

format: $(READY) ## put the code into the house's format and mend what lint can mend
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

bench: $(READY) ## speed and memory, measured; prints tables; ROWS=2000000 KEYS=100000000 for the large ones
	$(BIN)/python tests/benchmarks/bench_build.py --rows $(ROWS)
	$(BIN)/python tests/benchmarks/bench_peers.py
	$(BIN)/python tests/benchmarks/bench_land.py --lines $(ROWS)
	$(BIN)/python tests/benchmarks/bench_keys.py --keys $(KEYS)
	$(BIN)/python tests/benchmarks/bench_upload.py
	$(BIN)/python tests/benchmarks/bench_router.py

drills: drills-core drills-spark $(MEMBERS:%=drills-%) ## the long kill and fault runs: every kill point, every lost reply

drills-core: $(READY)
	$(BIN)/python $(PYTEST) -m drill --timeout 1800 tests $(ARGS)

drills-spark: .venv-spark/.ready
	$(SPARK_PYTEST) -m drill --timeout 1800 tests/on_spark $(ARGS)

drills-%: .venv-%/.ready ## the drills of one package, beside its real orchestrator
	$(PYTEST_OF) -m drill --timeout 1800 tests/on_$* $(ARGS)

fuzz: $(READY) ## fuzz the manifest check and the artifact decoder; SECONDS=3600 each
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet 'atheris>=2.3'
	$(BIN)/python tests/fuzz/fuzz_manifest_line.py -max_total_time=$(SECONDS)
	$(BIN)/python tests/fuzz/fuzz_artifact_line.py -max_total_time=$(SECONDS)

constraints: constraints-core constraints-spark $(MEMBERS:%=constraints-%) ## renew the tested versions in tests/constraints/ (asks the package index)

constraints-core: $(BIN)/uv
	$(BIN)/uv pip compile pyproject.toml $(EXTRAS:%=--extra %) --group dev --group compiler --universal --python-version 3.11 \
		--upgrade --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
		--quiet --output-file $(CONSTRAINTS)

constraints-spark: $(BIN)/uv
	$(BIN)/uv pip compile pyproject.toml --extra all --extra delta --extra iceberg --extra spark --group spark --universal \
		--python-version 3.11 --upgrade --no-emit-package batchrouter-core \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links \
		--quiet --output-file tests/constraints/spark.txt

# The core itself is installed from this checkout, so it has no version to be pinned.
constraints-%: $(BIN)/uv
	$(BIN)/uv pip compile $(FOLDER_$*)/pyproject.toml --all-extras \
		--group $(FOLDER_$*)/pyproject.toml:test --universal --python-version 3.11 --upgrade \
		--no-emit-package batchrouter-core \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links \
		--quiet --output-file tests/constraints/$*.txt

kernel-wheels: $(READY) ## wheels of the C kernel for every platform, into dist/
	for platform in $$($(BIN)/python kernel/compile.py); do \
		BATCHROUTER_KERNEL_PLATFORM=$$platform $(BIN)/uv build --quiet --wheel --out-dir dist \
			--build-constraint $(CONSTRAINTS) kernel || exit 1; \
	done

setup: $(READY) ## only set up .venv

clean: ## remove what the targets made: .venv, caches, builds
	rm -rf $(VENV) .venv-* batchrouter-demo .nox .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	find core tests examples $(foreach name,$(MEMBERS),$(FOLDER_$(name))) -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/uv:
	@test -n "$(PYTHON)" || { echo "no python3 found: install Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is too old: Python 3.11 or newer is needed (make PYTHON=/path/to/python)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) uv

$(READY): pyproject.toml $(CONSTRAINTS) kernel/compile.py kernel/pyproject.toml kernel/src/batchrouter_kernel/lines.c | $(BIN)/uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --constraint $(CONSTRAINTS) \
		--build-constraint $(CONSTRAINTS) --compile-bytecode --group dev --editable '.[all,delta,iceberg,otel,postgres,s3,sqlite]' --editable kernel
	@touch $@

.venv-spark/.ready: pyproject.toml tests/constraints/spark.txt | $(BIN)/uv
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .venv-spark
	VIRTUAL_ENV=.venv-spark $(BIN)/uv pip install --quiet --constraint tests/constraints/spark.txt \
		--build-constraint tests/constraints/core.txt --compile-bytecode \
		--group spark --editable '.[all,delta,iceberg,spark]'
	@touch $@

.venv-%/.ready: pyproject.toml tests/constraints/%.txt | $(BIN)/uv
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .venv-$*
	VIRTUAL_ENV=.venv-$* $(BIN)/uv pip install --quiet --constraint tests/constraints/$*.txt \
		--build-constraint tests/constraints/core.txt --compile-bytecode \
		--editable . --editable $(FOLDER_$*) --group $(FOLDER_$*)/pyproject.toml:test
	@touch $@
