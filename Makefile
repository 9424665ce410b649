# make quickstart: set up, then run the main job on the embedded data set.
# make test:       set up, then run the tests.
# make test-docs:  run every command of README and docs/ that needs nothing from elsewhere.
# make test-torch: read full-size files that PyTorch wrote; PyTorch gets an environment of its own.
# make test-io:    prepare, train, evaluate and export over s3://; tensorflow-io gets an environment of its own.
# make test-beam:  prepare and features on engines of Apache Beam, in an environment of its own.
# make test-runtimes: ONNX Runtime, OpenVINO and NNCF beside the rest, and their tests.
# Another Python: make test PYTHON=python3.13 VENV=.venv313
PYTHON ?= python3
VENV ?= .venv

.PHONY: setup quickstart test test-docs test-torch test-beam test-runtimes test-io

setup: $(VENV)/ready

$(VENV)/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -r requirements.txt --editable .
	touch $@

quickstart: setup
	$(VENV)/bin/python -m c3d_tf.main --flagfile=experiments/quickstart.flags

test: setup
	$(VENV)/bin/python -m pytest

test-docs: setup
	$(VENV)/bin/python -m pytest -m docs tests/docs_test.py

test-torch: setup $(VENV)-torch/ready
	TORCH_PYTHON=$(VENV)-torch/bin/python $(VENV)/bin/python -m pytest -m torch tests/torch_test.py

$(VENV)-torch/ready: requirements-torch.txt
	$(PYTHON) -m venv $(VENV)-torch
	$(VENV)-torch/bin/python -m pip install --quiet -r requirements-torch.txt
	touch $@

test-io: $(VENV)-io/ready
	$(VENV)-io/bin/python -m pytest -m io tests/io_test.py

$(VENV)-io/ready: requirements-io.txt
	$(PYTHON) -m venv $(VENV)-io
	$(VENV)-io/bin/python -m pip install --quiet -r requirements-io.txt
	touch $@

test-beam: $(VENV)-beam/ready
	$(VENV)-beam/bin/python -m pytest tests/beam_test.py

$(VENV)-beam/ready: requirements-beam.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)-beam
	$(VENV)-beam/bin/python -m pip install --quiet -r requirements-beam.txt --editable .
	touch $@

test-runtimes: $(VENV)/ready-runtimes
	$(VENV)/bin/python -m pytest -m "runtimes or not runtimes" tests/runtimes_test.py

$(VENV)/ready-runtimes: $(VENV)/ready requirements-runtimes.txt
	$(VENV)/bin/python -m pip install --quiet -r requirements-runtimes.txt
	touch $@
