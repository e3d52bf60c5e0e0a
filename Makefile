# make search   a search from nothing: environment, installation, search, report
# make test     lint, types and tests (a worker on each core), in an environment of their own making
# make test-all the slow tests too
# make test-sanitize  the native kernels' tests, built with AddressSanitizer and UndefinedBehaviorSanitizer
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q

# A file's tests stay together: they share what is dear to make.
WORKERS := -n auto --dist loadfile

.PHONY: search test test-all test-sanitize lint clean

search: $(VENV)/.installed
	$(BIN)/haqsearch run searches/digits-bismo-edge.toml
	@echo "Open results/digits-bismo-edge/report.html in a browser."

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest $(WORKERS)

test-all: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest $(WORKERS) -m ''

# Python itself is not built so: the sanitizers' libraries come first, and what it leaks is its own.
SANITIZED := build/sanitize
test-sanitize: $(VENV)/.installed-dev
	$(PIP) install -c constraints.txt nanobind cmake ninja
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -G Ninja -S haqsearch/kernels/native -B $(SANITIZED) -DHAQ_SANITIZE=ON \
	  -DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python"
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build $(SANITIZED)
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 HAQ_NATIVE="$$(ls $(SANITIZED)/_native*.so)" \
	  $(BIN)/python -m pytest -p tests.kernels.another_build tests/kernels/test_native.py tests/kernels/test_packed.py tests/ptq/test_lattice.py tests/calibrate/test_observers.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy haqsearch hwmodels

# torch first and by version: without one, pip may choose a build with gigabytes of CUDA libraries.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed tests/install-browser.sh
	$(PIP) install -c constraints.txt -e '.[dev]'
	sh tests/install-browser.sh
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
