# make train   run the main job on rendered faces (2 processes where there is no GPU)
# make test    lint, types, architecture and every test but the long ones
# make test-all  the same and the tests that take minutes each, which `make test` names as skipped
# make test-mxnet   read our records with MXNet 1.9.1, in an environment of its own (part of test)
# make test-cuda-dry   the code for GPUs on fake tensors, without a GPU, in an environment of its own
# make fuzz    10,000 faults at random, seed printed (FUZZ=1000 SEED=7: fewer, the same again)
# make test-nodes   nodes killed, cut off, stopped and joining, 50 kills: needs root, 90 minutes
# make test-long    20,000 steps: memory, files and threads stay flat
# make sbom    sbom.json: what is installed in .venv, as CycloneDX
# make lock    docker/requirements.lock anew from setup.py and constraints.txt
# make test-clients   our exports in onnxruntime 1.19, OpenCV, OpenVINO and insightface, likewise
# make check   lint, types, spelling and architecture only
# make docs    pages of the API from the docstrings, in build/docs; a warning is an error
# make release-check   what a release needs, one line for each; CONTRIBUTING.md has the list
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
MXNET  := .venv-mxnet
CUDA   := .venv-cuda
CLIENTS := .venv-clients
GPUS   := $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU')
NPROC  ?= $(if $(filter 0,$(GPUS)),2,$(GPUS))
FACES  ?= data/faces
CONFIG ?= configs/quickstart.yaml
ARGS   ?=
# Ranks share the cores: one thread each, as torchrun would set it with a warning.
export OMP_NUM_THREADS ?= 1

.PHONY: train test test-all test-mxnet test-cuda-dry check format clean test-image
.PHONY: fuzz test-nodes test-long test-clients sbom lock docs release-check
.DELETE_ON_ERROR:

train: $(VENV)/.installed $(FACES)/summary.json
	$(BIN)/python -m kappaface_dist torchrun --standalone --nproc_per_node=$(NPROC) \
		launch/train.py $(CONFIG) $(ARGS)

test: check $(MXNET)/.tried
	$(BIN)/python -m pytest tests -n auto --maxprocesses 4 --dist loadfile

test-all: check $(MXNET)/.tried
	LONG_TESTS=1 $(BIN)/python -m pytest tests -n auto --maxprocesses 4 --dist loadfile

test-mxnet: $(VENV)/.installed-dev $(MXNET)/.tried
	$(BIN)/python -m pytest tests/integration/test_mxnet.py

test-cuda-dry: $(CUDA)/.tried
	@if [ -x $(CUDA)/bin/python ]; then $(CUDA)/bin/python -m pytest tests/cuda_dry; \
	else cat $(CUDA)/.tried; fi

FUZZ ?= 10000
SEED ?= $(shell date +%s)
fuzz: $(VENV)/.installed-dev
	FUZZ=$(FUZZ) FUZZ_SEED=$(SEED) $(BIN)/python -m pytest -s tests/integration/test_fuzz.py

test-nodes: $(VENV)/.installed-dev
	ELASTIC_NODES=1 NODE_KILLS=50 $(BIN)/python -m pytest -s tests/integration/test_elastic_nodes.py

test-long: $(VENV)/.installed-dev
	SOAK_STEPS=20000 $(BIN)/python -m pytest -s tests/integration/test_long_run.py

# Tools that look at packages, in an environment of their own.
.venv-supply/.installed:
	$(PYTHON) -m venv .venv-supply
	.venv-supply/bin/python -m pip install --quiet uv==0.13.9 cyclonedx-bom==7.5.0
	touch $@

sbom: $(VENV)/.installed .venv-supply/.installed
	.venv-supply/bin/cyclonedx-py environment $(BIN)/python --output-reproducible -o sbom.json
	@echo "sbom.json: $$(grep -c '"purl"' sbom.json) packages"

# Without triton's pin, which is that of the tests for CPUs: torch for GPUs brings its own.
lock: .venv-supply/.installed
	grep -vi '^triton' constraints.txt > .venv-supply/constraints.txt
	echo setuptools | .venv-supply/bin/uv pip compile setup.py - --extra wandb --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-annotate --quiet \
	  -c .venv-supply/constraints.txt -o docker/requirements.lock

test-clients: $(VENV)/.installed-dev $(CLIENTS)/.tried
	$(BIN)/python -m pytest tests/integration/test_clients.py

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

# Undocumented names are as they are; what pdoc warns of is a module that it cannot import.
docs: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/python .github/draw_layers.py
	$(BIN)/python -W error::UserWarning -m pdoc -o build/docs kappaface_dist

release-check: check docs
	$(BIN)/python -m pip install --quiet -c constraints.txt build
	$(BIN)/python .github/release_check.py

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .

$(FACES)/summary.json: | $(VENV)/.installed
	$(BIN)/python tools/make_faces.py $(FACES) --json $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.py constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: setup.py constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed

# MXNet is archived and wants an old numpy. Where it cannot be had its tests are skipped, and say so.
$(MXNET)/.tried:
	rm -rf $(MXNET) && mkdir $(MXNET)
	$(PYTHON) -m venv $(MXNET) \
	  && $(MXNET)/bin/python -m pip install --quiet mxnet==1.9.1 numpy==1.23.5 \
	  && $(MXNET)/bin/python -c 'import mxnet' \
	  || { echo "MXNet cannot be installed here: its tests are skipped"; rm -rf $(MXNET)/bin; }
	touch $@

# A build of torch for CUDA imports without a driver, but takes 6 GB: not part of `make test`. The
# version that the tests are run with; pip's own index has a CUDA build of it for Python 3.11.
$(CUDA)/.tried:
	rm -rf $(CUDA) && mkdir $(CUDA)
	$(PYTHON) -m venv $(CUDA) \
	  && $(CUDA)/bin/python -m pip install --quiet torch==2.14.1 pytest pytest-timeout . \
	  && $(CUDA)/bin/python -m pip uninstall --quiet --yes kappaface_dist \
	  && $(CUDA)/bin/python -c 'import sys, torch; sys.exit(not torch.backends.cuda.is_built())' \
	  && echo "torch for CUDA is in $(CUDA)" > $@ \
	  || { rm -rf $(CUDA)/bin; \
	       echo "a build of torch for CUDA cannot be installed here (the reason is above, when it was" \
	         "tried; rm -r $(CUDA) to try again): the dry tests are skipped" > $@; }

# An old onnxruntime beside other people's programs; 0.9 GB and two minutes, so not part of `make test`.
$(CLIENTS)/.tried:
	rm -rf $(CLIENTS) && mkdir $(CLIENTS)
	$(PYTHON) -m venv $(CLIENTS) \
	  && $(CLIENTS)/bin/python -m pip install --quiet onnxruntime==1.19.2 openvino==2026.4.1 \
	    insightface==2.1 opencv-python-headless==5.0.0.93 \
	  && $(CLIENTS)/bin/python -c 'import cv2, insightface, onnxruntime, openvino' \
	  || { echo "the clients cannot be installed here: their tests are skipped"; rm -rf $(CLIENTS)/bin; }
	touch $@

# Builds the container image without a registry and trains in it (docker/test_image.sh says how).
test-image:
	docker/test_image.sh

clean:
	rm -rf $(VENV) $(MXNET) $(CUDA) $(CLIENTS) .venv-supply build *.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache
