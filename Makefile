# make run      start the web page (also what a bare "make" does)
# make setup    only create .venv; every other target does this first
# make test     run the tests; FAST=1: only quick ones, no browser, servers or Ray; ALL=1: also the longest
# make stress   run the long tests of faults, kills, full disks and load: an hour
# make lint     check style, formatting and types
# make fix      fix style and formatting
# make shots    pictures of the page in shots/
# make bench    measure speed, memory and seams beside other engines, 35 minutes; FULL=1: every size
# make quality  compare the built-in model with its teacher: make quality SETS=folder
# make train    retrain the built-in model: make train PHOTOS=folder
# make lock     renew requirements.lock with the newest versions allowed

PYTHON := .venv/bin/python
UV := $(PYTHON) -m uv

# Tests start many processes, each of which would compile the package again
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run setup test stress lint fix shots bench quality train lock

run: setup
	@$(PYTHON) app.py

setup: .venv/.installed

test: setup
	@$(PYTHON) -m pytest -n auto --dist loadfile --no-loadscope-reorder $(if $(ALL),-m "",$(if $(FAST),-m "not slow and not long"))

stress: setup
	@$(PYTHON) -m pytest tests/stress -o python_files='stress_*.py' -s
	@SWEEP=all $(PYTHON) -m pytest -n auto --dist loadfile --no-loadscope-reorder -m ""

lint: setup
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m basedpyright

fix: setup
	@$(PYTHON) -m ruff check --fix .
	@$(PYTHON) -m ruff format .

shots: setup
	@$(PYTHON) -m tests.shots

bench: .venv/.bench
	@$(PYTHON) -m bench $(if $(FULL),--full)

quality: setup
	@$(PYTHON) -m bench.quality $(or $(SETS),$(error say where kodak24/, set14/ and realsrset/ are: make quality SETS=folder))

train: setup
	@$(PYTHON) -m training $(or $(PHOTOS),$(error say where photographs are: make train PHOTOS=folder))

lock: .venv/.uv
	@$(UV) pip compile --quiet requirements-dev.txt --universal --python-version 3.10 --upgrade -o requirements.lock

# Each stamp below is written last, so the next make resumes an interrupted set-up.

# An environment with uv in it. One that works is kept. basicsr cannot be built on Python 3.13 or newer.
.venv/.uv:
	@usable() { case "$$("$$1" -c "import sys, $$2; print(sys.version_info[1])" 2>/dev/null)" in \
	    10|11|12) ;; *) return 1 ;; esac; }; \
	if usable $(PYTHON) pip; then exit; fi; \
	for python in python3 python3.12 python3.11 python3.10; do \
	    if usable $$python ensurepip,venv; then exec $$python -m venv --clear .venv; fi; \
	done; \
	if uv --version >/dev/null 2>&1; then rm -rf .venv; exec uv venv --quiet --seed --python 3.12 .venv; fi; \
	echo "Python 3.10, 3.11 or 3.12 with its venv module is needed, or uv, which can fetch one." >&2; exit 1
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check "uv>=0.9,<1"
	@touch $@

# On Linux the usual PyTorch packages bring 3 GB of CUDA. Without an NVIDIA GPU the CPU build is taken instead,
# as long as PyTorch's own package index can be reached; the first command only asks whether it can.
.venv/.installed: .venv/.uv requirements.txt requirements-ray.txt requirements-dev.txt requirements.lock
	@echo "Installing packages into .venv. The first time takes a few minutes."
	@backend=; \
	if [ "$$(uname)" = Linux ] && ! nvidia-smi >/dev/null 2>&1 && \
	    UV_HTTP_TIMEOUT=5 UV_HTTP_RETRIES=0 timeout 10 $(UV) pip install --python $(PYTHON) --dry-run --reinstall \
	    --no-deps --torch-backend cpu -c requirements.lock torch torchvision >/dev/null 2>&1; \
	then backend="--torch-backend cpu"; fi; \
	$(UV) pip install --compile-bytecode --python $(PYTHON) $$backend -r requirements-dev.txt -c requirements.lock
	@touch $@

# Only `make bench` needs these; those that cannot be installed are left out of the comparison.
.venv/.bench: .venv/.installed requirements-bench.txt
	@$(UV) pip install --quiet --python $(PYTHON) -r requirements-bench.txt -c requirements.lock
	@touch $@
