# Every target sets up what it needs; deploy/setup.sh names the system packages.
SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.stamp
BENCHES := $(patsubst bench/%.py,bench-%,$(filter-out bench/__init__.py bench/devcluster.py bench/node_pull.py bench/e2e_load.py bench/plain.py bench/plain_groups.py bench/openb.py bench/openb_core.py bench/openb_replay.py,$(wildcard bench/*.py)))
export PYTHONHASHSEED := 0

.PHONY: help venv setup-demo setup-test demo down test test-kill check format proto bench $(BENCHES)

help:
	@echo "make demo       a real cluster of three nodes on this machine, with the guestbook on it (as root)"
	@echo "make down       take it away again, leaving nothing"
	@echo "make check      format, lint, types, layers, generated code, unit tests"
	@echo "make test       all tests (as root)"
	@echo "make test-kill  kill every part of a running demo in turn"
	@echo "make bench      all benchmarks; one each: $(BENCHES)"
	@echo "make proto      generate the message modules and docs/fields.md again"

$(STAMP): pyproject.toml src/shoal/__init__.py deploy/setup.sh
	@bash deploy/setup.sh venv
	@touch $@

venv: $(STAMP)

setup-demo:
	@bash deploy/setup.sh demo

setup-test:
	@bash deploy/setup.sh test

demo: setup-demo venv
	@$(PY) -m shoal.deploy.demo up

down: venv
	@$(PY) -m shoal.deploy.demo down

check: venv
	@$(VENV)/bin/ruff format --check -q .
	@$(VENV)/bin/ruff check -q .
	@$(VENV)/bin/mypy src tests bench
	@$(VENV)/bin/pytest -q -m "not slow" tests/meta tests/unit

test: setup-test venv
	@$(PY) -m tests.stages

test-kill: setup-test venv
	@$(PY) -m tests.kill

format: venv
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix -q .

proto: venv
	@$(PY) tests/meta/protoc.py
	@$(PY) -m tests.meta.fields

bench: $(BENCHES)

$(BENCHES): bench-%: setup-demo venv
	@$(PY) -m bench.$*
