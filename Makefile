# Everything sets itself up in .venv: Python 3.11 or later, make and a package index are all that is needed.
#   make demo             normalize a photograph, on every backend here
#   make test             run the tests
#   make test-hostile     run what takes longer, or root: faults, forks, threads, interrupts, 100,000 fuzzed calls
#   make test-floors      run them with the oldest NumPy and Numba that pyproject.toml allows, in .venv-floors
#   make test-no-numba    run what does without Numba, in .venv-no-numba
#   make lint             ruff, mypy, and the workflow files
#   make dist             sdist and wheel in dist/, checked as an index would
#   make bench            run the asv suite on the working tree (BENCH=regex for a part of it)
#   make bench-compare BASE=rev   compare HEAD with a revision, and fail on a regression
#   make bench-html       publish the results as a site in .asv/html
#   make test PYTHON=python3.12   with another interpreter (remakes .venv if it holds another version)

VENV ?= .venv
BIN := $(VENV)/bin
SUPPORTED := import sys; sys.exit(sys.version_info < (3, 11))

ASV = cd asv_bench && PATH="$(abspath $(BIN)):$$PATH" asv
BASE ?= main
FACTOR ?= 1.15

ifeq ($(origin PYTHON),undefined)
# The environment's own, if there is one; else the first that is new enough.
PYTHON := $(shell for p in $(BIN)/python python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)
endif
VERSION := $(shell $(PYTHON) -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>/dev/null)
MADE := $(VENV)/.made-$(VERSION)

.PHONY: demo test test-floors test-no-numba test-hostile lint dist bench bench-compare bench-html clean
.DELETE_ON_ERROR:

demo: $(VENV)/.ready-demo
	$(BIN)/normkit demo

test: $(VENV)/.ready-test
	$(BIN)/pytest

test-hostile: $(VENV)/.ready-hostile
	$(BIN)/pytest -m "" tests/test_hostile_*.py tests/test_memory_limits.py tests/test_reliability_*.py tests/test_fuzz.py

# The floors are read from pyproject.toml: whoever raises one there raises it here. 2.0 stands for the last 2.0.x.
FLOORS = $(shell sed -n 's/^dependencies = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",' | sed 's/>=\([0-9.]*\)/==\1.*/g')
test-floors:
	$(MAKE) VENV=.venv-floors .venv-floors/.ready-test
	.venv-floors/bin/python -m pip install --quiet --disable-pip-version-check $(foreach floor,$(FLOORS),'$(floor)')
	.venv-floors/bin/pytest

# Files that are not about Numba: what they run on every backend here, they run on NumPy.
NO_NUMBA = functional hardware layout oracle problem
test-no-numba:
	$(MAKE) VENV=.venv-no-numba .venv-no-numba/.ready-test
	.venv-no-numba/bin/python -m pip uninstall --quiet --yes numba llvmlite
	.venv-no-numba/bin/normkit doctor
	.venv-no-numba/bin/pytest $(NO_NUMBA:%=tests/test_%.py)

lint: $(VENV)/.ready-test $(VENV)/.ready-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

dist: $(VENV)/.ready-release
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

# Results are kept under the commit that is checked out; an uncommitted change counts as a part of it.
bench: $(VENV)/.ready-bench
	$(ASV) machine --yes
	$(ASV) run --python=same --show-stderr -a rounds=1 --set-commit-hash `git rev-parse HEAD` --bench "$(or $(BENCH),.)"

# Fails if anything became slower by more than FACTOR. BENCH is a regular expression over names; BENCH=. takes an hour.
bench-compare: $(VENV)/.ready-bench
	$(ASV) machine --yes
	$(ASV) continuous --show-stderr --interleave-rounds -a rounds=4 --factor $(FACTOR) \
		--bench "$(or $(BENCH),Overhead.time_function|Overhead.time_layer|Size.time_forward|track_growth)" $(BASE) HEAD

bench-html: $(VENV)/.ready-bench
	@test -d .asv/results || { echo 'bench-html: no results yet; make bench comes first'; exit 2; }
	$(ASV) publish
	$(BIN)/python asv_bench/site.py

clean:
	rm -rf $(VENV) .venv-floors .venv-no-numba .asv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis normkit-demo.png
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An editable installation with one extra.
$(VENV)/.ready-%: pyproject.toml $(MADE)
	@echo "installing normkit[$*] and what it needs into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

$(MADE):
	@$(PYTHON) -c '$(SUPPORTED)' || { echo "normkit needs Python 3.11 or later: make PYTHON=/path/to/it" >&2; exit 1; }
	@test "`$(BIN)/python -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>/dev/null`" = "$(VERSION)" \
		|| { echo "making $(VENV) with Python $(VERSION)"; $(PYTHON) -m venv --clear $(VENV); }
	@touch $@
