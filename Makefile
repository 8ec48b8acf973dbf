# Everything works on a machine that has nothing but make and Python 3.11 to 3.14: each target makes
# .venv and installs what it needs, once. Arguments go through ARGS, e.g.  ARGS="--once" make demo

PYTHON ?= python3
ARGS ?=
WHAT ?=
MINUTES ?= 10

# Hundreds of Python processes start here: what they import is compiled once.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check \
	--constraint constraints.txt --editable

# WHAT, or the first of the words, if WHAT is empty. An error, if WHAT is another word.
one_of = $(or $(filter $(or $(WHAT),$(firstword $(1))),$(1)),$(error WHAT is one of: $(1)))

BENCH = $(call one_of,compare page regression memory outage prune telemetry triggers bursts scaling cluster signing live)
CHAOS = $(call one_of,run chain)
GENERATED = $(call one_of,text pictures)

# At once, before anything is installed.
CHECKED := $(if $(filter bench,$(MAKECMDGOALS)),$(BENCH))
CHECKED += $(if $(filter chaos,$(MAKECMDGOALS)),$(CHAOS))
CHECKED += $(if $(filter generate,$(MAKECMDGOALS)),$(GENERATED))

# What only these need.
BENCH_EXTRAS := '.[demo,otlp,bench]'
PICTURES_EXTRAS := '.[demo,dashboards]'

.PHONY: help demo test test-fast check chaos explore bench generate observe site wheel clean

help:
	@echo 'make demo       a live page in your browser, on servers of its own'
	@echo 'make test       all tests, on real servers: some ten minutes'
	@echo 'make test-fast  the tests without the marker "slow": a minute and a half'
	@echo 'make check      ruff (rules, format) and mypy --strict'
	@echo 'make chaos      10 minutes, or MINUTES=n: processes and servers are killed'
	@echo '                WHAT=chain: the same for the fallback chain'
	@echo '                ARGS="--redis cluster" or sentinel: several Redis servers'
	@echo 'make explore    every schedule of the cache protocol, and other random tests'
	@echo 'make bench      Glasspoint beside other checkpointers: seven minutes'
	@echo '                WHAT=page: measures all, and renews the figures in docs/'
	@echo '                WHAT=regression: status 1 if Glasspoint has become slower'
	@echo '                WHAT=memory|outage|prune|telemetry|triggers|bursts|'
	@echo '                     scaling|cluster|signing|live: one of benchmarks/'
	@echo 'make generate   the tables of docs/telemetry.md and dashboards/grafana/*.json'
	@echo '                WHAT=pictures: the pictures of the boards, in four minutes'
	@echo 'make observe    the observability stack without Docker, until Ctrl-C'
	@echo 'make site       docs/ and the API reference, in site/; a warning is an error'
	@echo 'make wheel      the wheel in clean environments, lowest and newest versions'
	@echo '                ARGS="python3.12 python3.13": with these Pythons'
	@echo 'make clean      removes .venv, caches and build products'
	@echo 'ARGS is passed on to the program:  ARGS="--once" make demo'

# With exec: Ctrl-C then meets the demo alone, which stops its servers before it ends.
demo: $(VENV)/.installed-demo
	@exec $(BIN)/glasspoint demo $(ARGS)

# Four files at a time, the long ones first: most tests wait for a server. ARGS="-n0 --pdb" for one at a time.
test: $(VENV)/.installed-dev
	@exec $(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: $(VENV)/.installed-dev
	@exec $(BIN)/pytest -m 'not slow' -n 3 --dist loadfile --durations 5 $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

# ARGS="--fallbacks redis,memory" for WHAT=chain: no process is killed, and both servers may be away.
chaos: $(VENV)/.installed-dev
	@cd tests && PYTHONPATH=$(CURDIR)/tests/support exec ../$(BIN)/python -m chaos.$(CHAOS) --minutes $(MINUTES) $(ARGS)

# It prints its TEST_SEED; with that in the environment it draws the same again.
explore: $(VENV)/.installed-dev
	@EXPLORE=1 exec $(BIN)/pytest -m 'dice or hypothesis' $(ARGS)

bench: $(VENV)/.installed-dev
	@$(if $(filter compare page,$(BENCH)),$(INSTALL) $(BENCH_EXTRAS))
	@$(if $(filter page,$(BENCH)),set -x; \
		$(BIN)/python benchmarks/compare.py --json docs/performance.json && \
		$(BIN)/python benchmarks/compare.py --uvloop --json docs/performance-uvloop.json && \
		$(BIN)/python benchmarks/scaling.py --measure && \
		$(BIN)/python benchmarks/cluster.py --json docs/cluster.json)
	@exec $(BIN)/python benchmarks/$(BENCH).py $(ARGS)

generate: $(VENV)/.installed-dev
	@$(if $(filter pictures,$(GENERATED)), \
		$(INSTALL) $(PICTURES_EXTRAS) && exec $(BIN)/python -m dashboards.pictures $(ARGS), \
		$(BIN)/python docs/generate.py && $(BIN)/python -m dashboards.build)

observe: $(VENV)/.installed-dev
	@exec $(BIN)/python -m dashboards.observe $(ARGS)

# Not --quiet: warnings would be no errors then. The variable: Material for MkDocs advertises its successor otherwise.
site: $(VENV)/.installed-site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)
	@echo 'The site is in site/: $(BIN)/python -m http.server --directory site'

# Minutes, and downloads: environments of their own, nothing of .venv.
wheel:
	@exec .ci/wheel $(or $(ARGS),$(PYTHON))

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist site
	find src tests dashboards benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing Glasspoint with its demo into $(VENV): once, about a minute ...'
	@$(INSTALL) '.[demo,otlp,otlp-file,instrumentation]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing Glasspoint with all that development needs into $(VENV): once, about a minute ...'
	@$(INSTALL) '.[demo,otlp,otlp-grpc,otlp-file,instrumentation,test]'
	@touch $@ $(VENV)/.installed-demo

$(VENV)/.installed-site: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing what builds the site into $(VENV): once, half a minute ...'
	@$(INSTALL) '.[site]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' || { \
		echo 'Glasspoint needs Python 3.11 to 3.14; name one: make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
