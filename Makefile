# make quickstart: set up, then run the main job on the embedded data set.
# make test:       set up, then run the tests.
# Another Python: make test PYTHON=python3.13 VENV=.venv313
PYTHON ?= python3
VENV ?= .venv

.PHONY: setup quickstart test

setup: $(VENV)/ready

$(VENV)/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -r requirements.txt --editable .
	touch $@

quickstart: setup
	$(VENV)/bin/python -m c3d_tf.main --flagfile=experiments/quickstart.flags

test: setup
	$(VENV)/bin/python -m pytest
