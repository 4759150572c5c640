# Every target sets up what it needs; see deploy/setup.sh for the system packages.
SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.stamp

.PHONY: venv check format lint types proto unit
venv: $(STAMP)

$(STAMP): pyproject.toml src/shoal/__init__.py deploy/setup.sh
	@bash deploy/setup.sh venv
	@touch $@

proto: venv
	@$(PY) tests/meta/protoc.py

format: venv
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix -q .

check: venv
	@$(VENV)/bin/ruff format --check -q .
	@$(VENV)/bin/ruff check -q .
	@$(VENV)/bin/mypy src tests
	@$(VENV)/bin/pytest -q tests/meta tests/unit
