# Python that makes the virtual environment, e.g. make run PYTHON=python3.11
PYTHON = python3
# Options of the main job, e.g. make run P="checkpoint_freq=3 epochs=6"
P =

BIN = .venv/bin
STAMP = .venv/installed

# Kills of `make chaos`, and the seed that draws their moments.
KILLS = 300
SEED = 0

.PHONY: help run test chaos docs browser screenshots format

help:
	@echo 'make run                                      set up .venv and train'
	@echo 'make run P="checkpoint_freq=3 epochs=6"       the same, with options'
	@echo 'make test                                     set up .venv and run all checks'
	@echo 'make chaos KILLS=300 SEED=0                   kill a run so many times, and see it end the same'
	@echo 'make docs                                     build the documentation into build/site'
	@echo 'make screenshots                              picture MLflow and record a terminal for docs/, by the tests'
	@echo 'make format                                   format the code and fix what lint can fix'
	@echo 'PYTHON=python3.11 after any of them           the Python to make .venv with'

# PATH: with --env-manager local, MLproject's `python` is the first one on it.
run: $(STAMP)
	PATH="$$PWD/$(BIN):$$PATH" $(BIN)/mlflow run . --env-manager local $(P:%=-P %)

test: $(STAMP) browser
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 -m 'not slow'
	$(BIN)/pytest -n 2 -m slow -rs

chaos: $(STAMP)
	KILLS=$(KILLS) SEED=$(SEED) $(BIN)/pytest -s tests/contract/test_chaos.py

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# MLflow's pages are tested in a real browser. On Debian, root gets one; else that test is skipped.
browser:
	@if ! { command -v chromium || command -v chromium-browser || command -v google-chrome; } \
	    >/dev/null && command -v apt-get >/dev/null && test "$$(id -u)" = 0; then \
	    echo 'Installing chromium ...'; export DEBIAN_FRONTEND=noninteractive; \
	    { apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium; } \
	        >/dev/null || true; \
	fi

screenshots: $(STAMP) browser
	SCREENSHOTS=docs/images $(BIN)/pytest tests/contract/test_browser.py tests/contract/test_terminal.py

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
