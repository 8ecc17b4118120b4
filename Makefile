# make demo: set up, train the demo sweep, report.  make test: set up, run every test.
# make board: TensorBoard over RUNS, on loopback.
# make bench: what a seed costs here, as a table.
# make study-a: part A of the study, small; make study-figures: its figures, from the records in study/.
PYTHON ?= python3.11
VENV := .venv
READY := $(VENV)/.ready
RUNS ?= runs

.PHONY: setup setup-gpu demo board test quick lint bench study-a study-figures

setup: $(READY)

LOCK := $(if $(wildcard $(VENV)/.gpu),requirements-gpu.lock,requirements-cpu.lock)

$(READY): $(LOCK) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -qq --disable-pip-version-check --no-deps -r $(LOCK)
	$(VENV)/bin/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(READY)

# The CUDA builds of the same versions; then every other target works as on a CPU.
setup-gpu:
	mkdir -p $(VENV) && touch $(VENV)/.gpu && rm -f $(READY)
	$(MAKE) setup

demo: $(READY)
	$(VENV)/bin/rankrl sweep recipes/demo.yaml --runs $(RUNS)

board: $(READY)
	$(VENV)/bin/tensorboard --logdir $(RUNS)

test: $(READY)
	$(VENV)/bin/python -m pytest -m "not pipeline" -n 2 --dist loadfile --durations=12
	$(VENV)/bin/python -m pytest -m pipeline -n 2 --dist loadfile --durations=25

quick: $(READY)
	$(VENV)/bin/python -m pytest -m "not pipeline and not slow" -n 2 --dist loadfile

# The peer of bench/peers.py, in an environment of its own.
.venv-trl/.ready:
	$(PYTHON) -m venv .venv-trl
	.venv-trl/bin/pip install -qq --disable-pip-version-check torch==2.13.0 trl==1.16.0 peft==0.21.2 datasets==5.2.0
	touch $@

bench: $(READY) .venv-trl/.ready
	$(VENV)/bin/python bench/bench.py
	$(VENV)/bin/python bench/peers.py
	$(VENV)/bin/python bench/grader.py
	$(VENV)/bin/python bench/report.py

study-a: $(READY)
	sh study/run.sh a-small

study-figures: $(READY)
	$(VENV)/bin/python study/figures.py

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
