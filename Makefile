# Every target does all of its own set-up: a virtual environment in the checkout, with the
# versions of constraints.txt. A second call finds it ready and starts at once.

PYTHON ?= python3
VENV := .venv
CONSTRAINTS := constraints.txt
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS_READY := $(VENV)/.extras-ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TF_CPP_MIN_LOG_LEVEL ?= 2
# Compiled modules are kept even where the environment says otherwise, as container images do: every
# program that a test starts would compile TensorFlow's anew, for as long again as it takes to load.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo demo-multiworker test coverage test-oldest test-oldest-core oldest lint types docs bench test-wheel clean

# One seed and two epochs: four minutes with the installation. More is python -m tfnorm.compare.
demo: $(READY)
	$(BIN)/python -m tfnorm.compare --seeds=0 --epochs=2

# Two workers of two replicas each on this machine, as they would be on two.
demo-multiworker: $(READY)
	rm -rf runs/demo-multiworker
	$(BIN)/python -m tfnorm.training.local_cluster 2 --num_replicas=2 --norm=brn \
	  --replica_batch_size=2 --epochs=4 --model_dir=runs/demo-multiworker

# Two processes; the one that is done first takes over half of what the other has left, so that
# what a module's tests share is made once, mostly.
PYTEST := python -m pytest -n 2 --dist=worksteal

# With more extras: one test builds the site and reads it with a browser, another compiles with JAX.
test: lint types $(EXTRAS_READY)
	$(BIN)/$(PYTEST)

# The same tests, and which lines and branches they run. Measuring it takes half as much time again
# where TensorFlow traces Python, so that it stands alone.
coverage: $(EXTRAS_READY)
	$(BIN)/$(PYTEST) --cov --cov-report=term

# The same tests on the oldest versions that setup.py allows, in an environment of their own.
OLDEST := .venv-oldest/bin/$(PYTEST) -W ignore::DeprecationWarning
test-oldest: oldest
	$(OLDEST)

# Of these the ones that notice first what other versions of Keras, TensorFlow and NumPy do
# otherwise: layers against the oracle, in files, under loss scaling; graphs, conversion in place,
# exports, streamed data, a run that goes on.
CORE := test_imports.py functional/test_references.py conformance/test_configuration.py \
  layers/test_against_references.py layers/test_loss_scaling.py graph/test_graph.py \
  conversion/test_in_place.py data/test_stream.py export/test_saved_model.py \
  training/test_resume.py::test_a_resumed_run_is_an_uninterrupted_one
test-oldest-core: oldest
	$(OLDEST) $(addprefix tests/,$(CORE))

oldest:
	$(MAKE) VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt .venv-oldest/.ready

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

# What users call has types that a checker believes: py.typed promises it.
types: $(READY)
	$(BIN)/mypy

# The documentation site, in dist/site; a broken link or an unknown name is an error. Its search
# needs a server: python3 -m http.server -d dist/site
docs: $(EXTRAS_READY)
	$(BIN)/mkdocs build --strict

# Takes a quarter of an hour on two cores, more where they are slow; writes results/benchmarks, and its
# figures into the pages.
bench: $(READY)
	$(BIN)/python -m benchmarks.bench
	$(BIN)/python -m benchmarks.quotes

# The wheel in a clean environment, away from the checkout.
test-wheel: $(READY)
	PYTHON=$(PYTHON) bash tests/wheel.sh

clean:
	rm -rf $(VENV) .venv-oldest dist runs *.egg-info .pytest_cache .ruff_cache .coverage .coverage.*

# Modules are compiled when they are first imported, which saves a minute of the installation.
# The mark is taken away first and set again last: an environment without it was interrupted half
# way and is made anew, one that has it only lacks what changed.
$(READY): setup.py $(CONSTRAINTS)
	@$(PYTHON) -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  2>/dev/null || { echo "tfnorm needs Python 3.11 to 3.13 with venv and pip, which" \
	  "'$(PYTHON)' is not: install one (Debian, Ubuntu: apt-get install python3-venv) or name" \
	  "it: make PYTHON=python3.12" >&2; exit 2; }
	@echo "Setting up $(VENV), once (1-3 minutes) ..."
	@test -e $@ || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $@
	$(BIN)/python -m pip install --no-compile --constraint $(CONSTRAINTS) --editable '.[test]'
	@touch $@

$(EXTRAS_READY): $(READY)
	$(BIN)/python -m pip install --no-compile --constraint $(CONSTRAINTS) --editable '.[docs,accelerator]'
	@touch $@
