# The only front door. Each target does the set-up that it needs (tools/bootstrap.sh).

SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.NOTPARALLEL:

SETUP  := tools/bootstrap.sh
RUN    := $(CURDIR)/.venv/bin/python
# --no-header keeps paths of the machine out of logs that are pasted elsewhere
PYTEST := $(RUN) -m pytest --no-header
JOBS   ?= 2
# End-to-end tests wait more than they work.
E2E_JOBS ?= 3
INSIDE := tests/unit tests/flow tests/property
# what `make e2e` and the others pass on: make e2e ARGS="-k tun", make demo ARGS=--rootless
ARGS   ?=

.PHONY: help demo test lint type e2e bench bench-micro bench-workers fuzz ci build pure debug coverage clean \
        test-compiled test-pure test-debug e2e-pure

help: ## what can be made
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: ## a network of namespaces, real traffic through the VIP, a table at the end
	@$(SETUP) build net
	@$(RUN) -m tunlb demo $(ARGS)

test: ## all tests on both builds, and end to end where namespaces can be made
	@$(SETUP) build try-net peers
	@$(MAKE) test-compiled test-pure e2e-run

test-compiled:
	@$(SETUP) build
	@if [ "$$CI" != true ] && [ "$$($(RUN) -c 'import tunlb; print(tunlb.build())')" != compiled ]; then \
	  echo "== no compiled build here: only the uncompiled one is tested"; \
	else \
	  echo "== compiled: unit, flow, property, arch"; \
	  TUNLB_BUILD=compiled $(PYTEST) -n $(JOBS) $(wildcard $(INSIDE)) tests/arch $(ARGS); \
	fi

test-pure: pure
	@echo "== uncompiled: unit, flow, property, arch"
	@cd build/pure && TUNLB_BUILD=pure PYTHONPATH=$(CURDIR)/build/pure \
	  $(PYTEST) -n $(JOBS) $(wildcard $(INSIDE)) tests/arch $(ARGS)

test-debug: debug
	@echo "== compiled with checks: unit, flow, property"
	@cd build/debug && TUNLB_BUILD=compiled PYTHONPATH=$(CURDIR)/build/debug \
	  $(PYTEST) -n $(JOBS) $(wildcard $(INSIDE)) $(ARGS)

e2e: ## real clients and servers in namespaces
	@$(SETUP) build net peers
	@$(MAKE) e2e-run

.PHONY: e2e-run
e2e-run:
	@$(call end-to-end,end to end,$(CURDIR),)

e2e-pure: pure ## the same on the uncompiled build, without the slow ones
	@export PYTHONPATH=$(CURDIR)/build/pure && \
	  $(call end-to-end,uncompiled$(COMMA) end to end (without the slow ones),$(CURDIR)/build/pure,and not slow,$(FEW))

# In continuous integration some minutes less: the first and the last variant of each test.
FEW := $(if $(filter true,$(CI)),--few)

# Tests of bounds in time have the machine to themselves; the others share it, a file at a time,
# and come last, so that what is printed last is of most tests. ARGS may choose from one half only.
COMMA := ,
define end-to-end
cd $(2) && \
  echo "== $(1): one at a time" && \
  { $(PYTEST) tests/e2e -m 'alone $(3)' $(4) $(ARGS)$(NONE_IS_FINE) } && \
  echo "== $(1): $(E2E_JOBS) at a time" && \
  { $(PYTEST) tests/e2e -m 'not alone $(3)' -n $(E2E_JOBS) --dist loadfile $(4) $(ARGS)$(NONE_IS_FINE) }
endef
NONE_IS_FINE = $(if $(ARGS), || [ $$? = 5 ]);

lint: ## format, lint, spelling, who imports whom
	@$(SETUP)
	@echo "== lint"
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/codespell
	@.venv/bin/lint-imports --no-cache --no-logo

type: ## mypy --strict
	@$(SETUP)
	@echo "== types"
	@.venv/bin/mypy

bench: ## tunlb beside the limit of the device, nftables, HAProxy and nginx; a report at the end
	@$(SETUP) build net bench
	@$(RUN) -m tunlb bench $(ARGS)

bench-micro: ## the pipeline by room, in counted instructions and in nanoseconds
	@$(SETUP) build micro
	@$(RUN) -m tunlb bench micro $(ARGS)

bench-workers: ## two workers over one, hand-over, recovery from kill -9, upgrade under load
	@$(SETUP) build net
	@for what in scaling handover recovery upgrade; do $(RUN) bench/$$what.py || bad=1; done; exit $$bad

fuzz: ## property tests with many more examples (FUZZ_EXAMPLES=5000)
	@$(SETUP) build
	@$(PYTEST) -n $(JOBS) -p tools.fuzz_profile $(wildcard tests/property tests/fuzz) $(ARGS)

# What fails early is cheap to run; the last line printed is pytest's own.
ci: export CI = true
ci: ## everything, as continuous integration runs it
	@$(SETUP) build debug net peers bench micro
	@$(MAKE) lint type test-compiled
	@$(MAKE) bench-micro ARGS='--check bench/baseline.json'
	@$(MAKE) test-pure test-debug e2e-pure e2e-run

build: ## compile the rooms in place
	@$(SETUP) build
	@$(RUN) -c 'import tunlb; print("tunlb", tunlb.__version__, tunlb.build())'

pure: ## a copy of the tree without compiled rooms, in build/pure
	@$(SETUP)
	@$(RUN) tools/mirror.py build/pure

debug: ## a copy compiled with checks, and Cython's annotated pages, in build/debug
	@$(SETUP) debug

coverage: pure ## which lines the inside's tests reach (uncompiled)
	@cd build/pure && PYTHONPATH=$(CURDIR)/build/pure \
	  $(RUN) -m coverage run -m pytest --no-header -q $(wildcard $(INSIDE)) $(ARGS)
	@cd build/pure && $(RUN) -m coverage report

clean: ## remove all that make made
	@rm -rf .venv build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .coverage
	@find tunlb -name '*.so' -delete
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
