# `make demo`, `make test` and `make lint` work on a fresh machine; each installs what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FOR_DEMO := $(VENV)/.installed
FOR_TESTS := $(VENV)/.installed-with-tests
# The smaller environment is enough for the demo; where the larger one is there, it is that.
READY := $(or $(wildcard $(FOR_TESTS)),$(FOR_DEMO))
JOBS ?= 2
# Containers often set this; here every process would then compile torch's modules again, 10 s of a processor each time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint format clean

demo: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash launch/demo.sh

# Test files side by side, JOBS at a time; those that launch several ranks one after the other (tests/conftest.py).
test: $(FOR_TESTS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --no-loadscope-reorder

lint: $(FOR_TESTS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

format: $(FOR_TESTS)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Re-installed when the packaging changes; otherwise the environment is current.
$(FOR_DEMO): EXTRAS := train
$(FOR_TESTS): EXTRAS := train,test,lint
$(FOR_DEMO) $(FOR_TESTS): setup.py pyproject.toml constraints.txt
	@echo "installing into $(VENV) (torch and friends: a few minutes on first use)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# The tested versions; where this Python or this index lacks one of them, the newest that setup.py allows. Modules
	@# are compiled when they are first imported: all 17,000 of them would take half a minute, most are never used.
	$(BIN)/python -m pip install --quiet --progress-bar off --no-compile -c constraints.txt -e ".[$(EXTRAS)]" \
	  || $(BIN)/python -m pip install --quiet --progress-bar off --no-compile -e ".[$(EXTRAS)]"
	@touch $@

clean:
	rm -rf $(VENV) runs build dist *.egg-info
