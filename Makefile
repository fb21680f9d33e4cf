# Python that makes the virtual environment, e.g. make run PYTHON=python3.11
PYTHON = python3
# Options of the main job, e.g. make run P="checkpoint_freq=3 epochs=6"
P =

BIN = .venv/bin
STAMP = .venv/installed

# Kills of `make chaos`, and the seed that draws their moments.
KILLS = 300
SEED = 0
# Several ranks of one run, e.g. make chaos RANKS=2 KILLS=100
RANKS =

# How long `make soak` trains, and where it draws what the processes held, if anywhere.
MINUTES = 20
PLOT =

# Options of `make pin`, e.g. make pin PIN=--all
PIN =

# Options of `make bench` and `make bench-quick`, e.g. make bench BENCH="--rounds 2 --ways bare train_run"
BENCH =
PEERS = build/bench

.PHONY: help run test contract chaos soak bench bench-quick versions server-versions pin docs browser servers screenshots format

help:
	@echo 'make run                                      set up .venv and train'
	@echo 'make run P="checkpoint_freq=3 epochs=6"       the same, with options'
	@echo 'make test                                     set up .venv, check style and types, run the tests but the long ones'
	@echo 'make contract                                 run the long tests: processes that are killed, servers that go away'
	@echo 'make chaos KILLS=300 SEED=0                   kill a run so many times, and see it end the same'
	@echo 'make chaos RANKS=2 KILLS=100                  the same for a run of several ranks'
	@echo 'make soak MINUTES=20 SEED=0                   train under kills, restarts and a failing network, and see nothing grow'
	@echo 'make bench                                    train in each way, in turns, and write docs/benchmarks.md anew'
	@echo 'make bench-quick                              two minutes: fail where a ratio is 10 % worse than recorded'
	@echo 'make versions                                 run the fast tests with the lowest and the newest requirements'
	@echo 'make server-versions                          run the main job against MLflow servers of older versions'
	@echo 'make pin PIN=--all                            write constraints.txt anew'
	@echo 'make docs                                     build the documentation into build/site'
	@echo 'make screenshots                              picture MLflow and record a terminal for docs/, by the tests'
	@echo 'make format                                   format the code and fix what lint can fix'
	@echo 'PYTHON=python3.11 after any of them           the Python to make .venv with'

# PATH: with --env-manager local, MLproject's `python` is the first one on it.
run: $(STAMP)
	PATH="$$PWD/$(BIN):$$PATH" $(BIN)/mlflow run . --env-manager local $(P:%=-P %)

# In 6 to 16 minutes on 2 cores. `make contract` runs what this leaves out; CI runs both.
test: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist worksteal -m 'not slow or smoke' -rs

contract: $(STAMP) browser servers
	$(BIN)/pytest -n 2 --dist worksteal -m 'slow and not smoke' -rs

chaos: $(STAMP)
	KILLS=$(KILLS) SEED=$(SEED) $(if $(RANKS),RANKS=$(RANKS)) $(BIN)/pytest -s \
	    $(if $(RANKS),tests/contract/test_ranks.py -k chaos,tests/contract/test_chaos.py)

soak: $(STAMP)
	MINUTES=$(MINUTES) SEED=$(SEED) PLOT=$(PLOT) $(BIN)/pytest -s tests/contract/test_soak.py

# In an environment of its own, which has the peers that install: benchmarks/requirements.txt.
bench: $(PEERS)/installed
	$(PEERS)/bin/python benchmarks/bench.py $(BENCH)

bench-quick: $(STAMP)
	$(BIN)/python benchmarks/quick.py $(BENCH)

$(PEERS)/installed: pyproject.toml constraints.txt benchmarks/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	@echo 'Installing torch, MLflow, the project and its peers into $(PEERS) (takes minutes) ...'
	$(PEERS)/bin/python -m pip install --quiet -c constraints.txt torch setuptools
	$(PEERS)/bin/python -m pip install --quiet -c constraints.txt --no-build-isolation -e .
	grep -v '^#' benchmarks/requirements.txt | while read peer; do \
	    $(PEERS)/bin/python -m pip install --quiet -c constraints.txt "$$peer" || echo "left out: $$peer"; \
	done
	touch $@

# Each makes a virtual environment of its own: docs/installing.md.
versions: $(STAMP)
	$(BIN)/python tools/versions.py lowest --python $(PYTHON)
	$(BIN)/python tools/versions.py newest --python $(PYTHON)

# MLflow servers of older versions against this client.
server-versions: $(STAMP)
	$(BIN)/python tools/versions.py servers

pin: $(STAMP)
	$(BIN)/python tools/versions.py pin $(PIN)

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

# Databases, stores and a proxy for tests/contract/test_servers.py. In CI the tests of one that could
# not be had fail; elsewhere they are skipped, and say why.
servers:
	@bash tools/servers.sh

screenshots: $(STAMP) browser
	SCREENSHOTS=docs/images $(BIN)/pytest tests/contract/test_browser.py tests/contract/test_terminal.py

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# In the exact versions of constraints.txt. setuptools builds the project where it is installed, in the
# version that stands there; pip by itself would fetch one for the build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo 'Installing torch into .venv (takes minutes) ...'
	$(BIN)/python -m pip install --quiet -c constraints.txt torch setuptools
	@echo 'Installing MLflow, the project and its development tools into .venv (takes minutes) ...'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $(STAMP)
