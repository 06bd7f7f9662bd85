# The front door of koa-clip. `make help` lists the targets.
PROFILE ?= demo
SEED ?=
DATA ?=
EXTERNAL ?=
WEIGHTS ?=
DRY ?=
ENGINE ?= local
DATA_DIR ?= data

# An activated virtual or conda environment is used (not conda's base); otherwise .venv is made.
ACTIVE := $(or $(VIRTUAL_ENV),$(if $(filter-out base,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX)))
ENV := $(or $(ACTIVE),.venv)
MAY := can_set_up.py
# The first Python that can hold the locked packages, or else python3, which is then refused.
PYTHON ?= $(or $(shell for p in python3.11 python3.12 python3.13; do $$p -I $(MAY) 2>/dev/null && echo $$p && break; done),python3)
PY := "$(ENV)/bin/python"
KOA := "$(ENV)/bin/koa"
# Folders may have spaces in their names, which a target must escape.
READY := $(subst $() ,\ ,$(ENV)/.koa-ready)

# Both name the run's folder.
WHOLE := $(shell printf '%s' '$(SEED)' | grep -Ex '0|[1-9][0-9]*')
$(if $(filter-out $(WHOLE),$(SEED)),$(error SEED=$(SEED) is no whole number such as 7. Give one without leading zeros))
$(if $(filter-out 1,$(words $(PROFILE))),$(error PROFILE=$(PROFILE) is not one name. Give one of those that 'make help' lists))

PROFILE_SEED := $(shell sed -n 's/^seed: *//p' notebooks/profiles/$(PROFILE).yaml 2>/dev/null)
# The kernel python3 is this environment's, not one of the same name in the user's folder.
export JUPYTER_PREFER_ENV_PATH := 1
export KOA_DRY := $(filter-out 0,$(DRY))
# Where jobs are done: local, or ray for a cluster (RAY_ADDRESS, else one on this machine).
export KOA_ENGINE := $(ENGINE)
RUN := $(PROFILE)$(if $(KOA_DRY),-dry)$(addprefix -seed,$(filter-out $(PROFILE_SEED),$(SEED)))
OUT := reports/_build/$(RUN)
PAGE := $(OUT)/html/index.html
RUN_ARGS := --profile $(PROFILE) $(if $(SEED),--seed $(SEED))
# The options that name the run, for the commands that may follow it.
NAMED := $(strip $(if $(filter-out demo,$(PROFILE)),PROFILE=$(PROFILE)) $(if $(SEED),SEED=$(SEED)) $(if $(KOA_DRY),DRY=1))
ifndef KOA_STARTED
export KOA_STARTED := $(shell date +%s)
endif
# Notebooks at once: two where each computes in one thread here. Numbers do not depend on it.
THREADS := $(shell sed -n 's/^threads: *//p' notebooks/profiles/$(PROFILE).yaml 2>/dev/null)
JOBS ?= $(if $(filter local1,$(ENGINE)$(THREADS)),2,1)
# Their kernels are forked from one process that has the libraries imported. (`exec`, so that a signal to make arrives.)
FORKED := $(PY) -m koa_lib.report.kernels $(or $(THREADS),1)

NOTEBOOKS := $(basename $(notdir $(sort $(wildcard notebooks/[0-9]*.ipynb))))
# In this order: what waits for nothing runs beside the long ones, so that both lanes are full to the end.
FIRST := $(foreach n,01 02 03 04 11 09 08 05,$(filter $n%,$(NOTEBOOKS)))
EXECUTED := $(patsubst %,$(OUT)/nb/%.ipynb,$(FIRST) $(filter-out $(FIRST),$(NOTEBOOKS)))
# What all notebooks depend on, and what only the pages do.
LIB := $(shell find koa_lib data_manifests -name '*.py' -o -name '*.json' -o -name '*.npy' -o -name '*.yaml' -o -name '*.csv')
SOURCES := $(shell find reports -path reports/_build -prune -o -path reports/reference -prune -o -type f ! -name '*.pyc' -print)

.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: help setup data reproduce dry pdf verify bench test test-all lab strip reference lock student clean FORCE

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##  */\1|/p' Makefile | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo "  Options: PROFILE=smoke|demo|oai|laptop|paper SEED=<n> JOBS=<n> DATA=<folder> EXTERNAL=<folder> WEIGHTS=<folder> DRY=1 ENGINE=local|ray"

# uv is quicker, but knows none of pip's settings: where these name a place for packages, it is pip.
UV = command -v uv >/dev/null && ! $(PY) -m pip config list 2>/dev/null | grep -Eq 'index|find-links'
install = if $(UV); then uv pip install --quiet --compile-bytecode --python $(PY) $(1); \
	else $(PY) -m pip install --quiet --disable-pip-version-check $(1); fi

setup: $(READY)  ## make the environment (.venv, or the activated one) from requirements.lock

$(READY): requirements.lock pyproject.toml
	@if test -x $(PY); then $(PY) -I $(MAY) "$(ENV)"; else "$(PYTHON)" -I $(MAY); fi
	@echo "setting up $(ENV): about 3 minutes and 6 GB"
	@echo "1/3 the environment"
	@test -x $(PY) || "$(PYTHON)" -m venv "$(ENV)"
	@$(UV) || $(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null
	@echo "2/3 the packages of requirements.lock, by `$(UV) && echo uv || echo pip`: nearly all of the time"
	@$(call install,--require-hashes -r requirements.lock)
	@echo "3/3 koa-clip itself"
	@$(call install,--no-deps --no-build-isolation -e .)
	@touch "$@"
	@echo ready: $(KOA)

data: $(READY)  ## download both public sets to data/ and check every picture (DATA_DIR=<folder> for another place)
	@$(KOA) data fetch oai_chen2018 "$(DATA_DIR)/oai_chen2018"
	@$(KOA) data fetch gornale2020 "$(DATA_DIR)/gornale2020"

reproduce: $(READY)  ## run a profile end to end and say where the report is (default: demo)
	@exec $(FORKED) $(MAKE) --no-print-directory $(if $(filter -j%,$(MAKEFLAGS)),,-j$(JOBS)) $(PAGE)
	@if [ ! -e $(OUT)/.told ] || [ $(PAGE) -nt $(OUT)/.told ]; then $(KOA) summary $(RUN_ARGS) --options "$(NAMED)" && touch $(OUT)/.told; else echo "up to date: $(CURDIR)/$(PAGE)"; fi

dry:  ## show that `paper` runs (or PROFILE=laptop): true architectures, random weights, a few pictures, one epoch, offline
	@$(MAKE) --no-print-directory reproduce PROFILE=$(if $(filter laptop,$(PROFILE)),laptop,paper) DRY=1

$(OUT)/inputs.yaml: FORCE | $(READY)
	@$(KOA) inputs $(RUN_ARGS) --data "$(DATA)" --external "$(EXTERNAL)" --weights "$(WEIGHTS)"

$(OUT)/nb/%.ipynb: notebooks/%.ipynb reports/exhibits/%.yaml reports/exhibits/columns.yaml $(OUT)/inputs.yaml $(wildcard notebooks/profiles/$(PROFILE).yaml) $(LIB)
	@exec $(KOA) notebook $* $(RUN_ARGS)

# Order: pre-training comes before what needs its tower, drawing before what needs the pictures. Two at once that need the
# same training share it: whoever comes second takes what the first has made.
$(OUT)/nb/04_baselines.ipynb: $(OUT)/nb/01_data_audit.ipynb
$(foreach n,03 05 07 08 09 10 11 12,$(filter $(OUT)/nb/$n%,$(EXECUTED))): $(OUT)/nb/02_zero_shot_baseline.ipynb
$(OUT)/nb/00_start_here.ipynb $(OUT)/nb/06_statistics.ipynb: $(OUT)/nb/03_fine_tune.ipynb
$(OUT)/nb/06_statistics.ipynb $(OUT)/nb/12_explainability.ipynb: $(OUT)/nb/04_baselines.ipynb
$(OUT)/nb/06_statistics.ipynb: $(OUT)/nb/05_external_evaluation.ipynb
# What `make bench` measured is shown there.
$(OUT)/nb/06_statistics.ipynb: $(wildcard reports/_build/bench/*.csv)
# The scorecard reads what all others answered.
$(OUT)/nb/13_scorecard.ipynb: $(filter-out $(OUT)/nb/13_scorecard.ipynb,$(EXECUTED))

$(PAGE): $(EXECUTED) $(SOURCES)
	@$(PY) -m reports build $(RUN_ARGS)

pdf: $(PAGE)  ## print the report to one PDF with bookmarks (needs Chromium)
	@$(PY) -m reports pdf $(RUN_ARGS)

bench: $(READY)  ## time the library beside a plain way with the same results, side by side (DATA=<folder>: on real pictures)
	@$(KOA) bench --data "$(DATA)"

# In two lanes, see tests/conftest.py.
PYTEST := $(PY) -m pytest -n 2 --no-loadscope-reorder --durations=25

test: $(READY)  ## run the tests, with one smoke run of all notebooks (about 6 minutes)
	@$(PYTEST)

test-all: $(READY)  ## also the slow tests
	@$(PYTEST) -m "slow or not slow"

lab: $(READY)  ## open the notebooks in JupyterLab; each makes what it misses
	@echo "Your own copies without solutions: make student. Outputs leave the study's notebooks by: make strip"
	@"$(ENV)/bin/jupyter" lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate

student: $(READY)  ## write copies of the notebooks without solutions to student/; changed copies are kept
	@$(KOA) student

strip: $(READY)  ## strip outputs and run metadata from the notebooks
	@"$(ENV)/bin/nbstripout" --extra-keys "metadata.papermill cell.metadata.papermill metadata.language_info cell.metadata.execution" notebooks/*.ipynb

verify: $(READY)  ## compare the tables of a finished run with the reference tables; fails on a miss
	@$(PY) -m reports verify $(RUN_ARGS)

reference: $(READY)  ## keep the tables of a finished run below reports/reference
	@$(PY) -m reports reference $(RUN_ARGS)

lock:  ## renew requirements.lock from pyproject.toml (needs uv)
	@uv pip compile pyproject.toml --universal --generate-hashes --python-version 3.11 --extra dev --extra dicom --extra systems --no-emit-index-url --no-annotate --no-header -q -o requirements.lock

clean:  ## remove what runs have made (data, results, reports)
	@rm -rf reports/_build
