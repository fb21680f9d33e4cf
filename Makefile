# Python that makes the virtual environment, e.g. make run PYTHON=python3.11
PYTHON = python3
# Options of the main job, e.g. make run P="checkpoint_freq=3 epochs=6"
P =

BIN = .venv/bin
STAMP = .venv/installed

# Kills of `make chaos`, and the seed that draws their moments.
KILLS = 300
SEED = 0

.PHONY: help run test chaos format

help:
	@echo 'make run                                      set up .venv and train'
	@echo 'make run P="checkpoint_freq=3 epochs=6"       the same, with options'
	@echo 'make test                                     set up .venv and run all checks'
	@echo 'make chaos KILLS=300 SEED=0                   kill a run so many times, and see it end the same'
	@echo 'make format                                   format the code and fix what lint can fix'
	@echo 'PYTHON=python3.11 after any of them           the Python to make .venv with'

# PATH: with --env-manager local, MLproject's `python` is the first one on it.
run: $(STAMP)
	PATH="$$PWD/$(BIN):$$PATH" $(BIN)/mlflow run . --env-manager local $(P:%=-P %)

test: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 -m 'not slow'
	$(BIN)/pytest -n 2 -m slow

chaos: $(STAMP)
	KILLS=$(KILLS) SEED=$(SEED) $(BIN)/pytest -s tests/contract/test_chaos.py

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch first and by exact version, so that no other package decides which torch is fetched.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	@echo 'Installing torch into .venv (takes minutes) ...'
	$(BIN)/python -m pip install --quiet torch==2.13.0
	@echo 'Installing MLflow, the project and its development tools into .venv (takes minutes) ...'
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $(STAMP)
