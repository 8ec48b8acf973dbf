# Everything works on a machine that has nothing but make and Python 3.11 to 3.14: each target makes
# .venv and installs what it needs, once. Arguments go through ARGS, e.g.  ARGS="--once" make demo

PYTHON ?= python3
ARGS ?=
MINUTES ?= 10

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check \
	--constraint constraints.txt --editable

.PHONY: help demo test lint types docs site dashboards observe pictures explore chaos chaos-chain bench bench-page bench-prune \
	bench-outage bench-memory bench-regression bench-scaling bench-scrape bench-telemetry bench-triggers \
	bench-bursts wheel clean

help:
	@echo 'make demo           the story, /metrics and a live table, on servers of its own'
	@echo 'make test           all tests, on real servers'
	@echo 'make chaos          10 minutes of it, or MINUTES=n: processes and servers are killed, nothing may be lost'
	@echo 'make chaos-chain    that for the fallback chain: processes start, work and die in every tier'
	@echo 'make explore        every schedule of the cache protocol, and fresh dice in all tests that draw: minutes to an hour'
	@echo 'make lint           ruff, rules and format'
	@echo 'make types          mypy --strict on src and what builds the dashboards'
	@echo 'make docs           the generated tables of docs/telemetry.md'
	@echo 'make site           docs/ and the API reference as a site in site/, any warning is an error'
	@echo 'make dashboards     dashboards/grafana/*.json, from dashboards/boards'
	@echo 'make observe        what stands behind the dashboards, without Docker, until Ctrl-C'
	@echo 'make pictures       what the dashboards look like, docs/pictures/*.png: about four minutes'
	@echo 'make bench          Glasspoint beside its peers and the limit: seven minutes, or ARGS=--quick'
	@echo 'make bench-page     that twice, and docs/performance.md and docs/scaling.md made of it'
	@echo 'make bench-bursts   memory of 10,000 open bursts, and what 100,000 fences cost PostgreSQL'
	@echo 'make bench-memory   memory of a process, bytes in Redis, queries and commands a turn'
	@echo 'make bench-outage   what an outage of Redis costs a process, 200,000 calls long'
	@echo 'make bench-prune    what pruning 200,000 checkpoints costs, and what live puts notice'
	@echo 'make bench-telemetry  what metrics and traces cost a hit and a put'
	@echo 'make bench-triggers  what the triggers that note foreign writes cost our own writes'
	@echo 'make bench-regression  is a hit, a write or a turn slower than it was, told by ratios: status 1 if so'
	@echo 'make bench-scaling  what a pod, a Redis and a PostgreSQL carry: from measured figures, simulated'
	@echo 'make bench-scrape   what a scrape takes while PostgreSQL is up, frozen and down'
	@echo 'make wheel          the wheel in clean environments, newest and lowest versions; ARGS="python3.12 python3.13"'
	@echo 'make clean          remove .venv, caches and build products'
	@echo 'Arguments go through ARGS, e.g.  ARGS="--once" make demo'

# With exec: Ctrl-C then meets the demo alone, which stops its servers before it ends.
demo: $(VENV)/.installed-demo
	@exec $(BIN)/glasspoint demo $(ARGS)

# Three at a time, a file each, the long ones (tests/chaos) first: most tests wait for a server. ARGS="-n0 --pdb" for one at a time.
test: $(VENV)/.installed-dev
	@exec $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

chaos: $(VENV)/.installed-dev
	@cd tests && exec ../$(BIN)/python -m chaos.run --minutes $(MINUTES) $(ARGS)

# ARGS="--fallbacks redis,memory": no process is killed, and both servers may be away.
chaos-chain: $(VENV)/.installed-dev
	@cd tests && exec ../$(BIN)/python -m chaos.chain --minutes $(MINUTES) $(ARGS)

# It prints its TEST_SEED; with that in the environment it draws the same again.
explore: $(VENV)/.installed-dev
	@EXPLORE=1 exec $(BIN)/pytest -m 'dice or hypothesis' $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.installed-dev
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/generate.py

# Not --quiet: warnings would be no errors then. The variable: Material for MkDocs advertises its successor otherwise.
site: $(VENV)/.installed-site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)
	@echo 'The site is in site/: $(BIN)/python -m http.server --directory site'

dashboards: $(VENV)/.installed-dev
	$(BIN)/python -m dashboards.build

observe: $(VENV)/.installed-dev
	@exec $(BIN)/python -m dashboards.observe $(ARGS)

pictures: $(VENV)/.installed-dev
	@$(INSTALL) '.[demo,dashboards]'
	@exec $(BIN)/python -m dashboards.pictures $(ARGS)

bench: $(VENV)/.installed-demo
	@$(INSTALL) '.[demo,otlp,bench]'
	@exec $(BIN)/python benchmarks/compare.py $(ARGS)

bench-page: $(VENV)/.installed-demo
	@$(INSTALL) '.[demo,otlp,bench]'
	$(BIN)/python benchmarks/compare.py --json docs/performance.json
	$(BIN)/python benchmarks/compare.py --uvloop --json docs/performance-uvloop.json
	$(BIN)/python benchmarks/scaling.py --measure
	$(BIN)/python benchmarks/page.py

bench-memory: $(VENV)/.installed-dev
	@exec $(BIN)/python benchmarks/memory.py $(ARGS)

bench-outage: $(VENV)/.installed-demo
	@exec $(BIN)/python benchmarks/outage.py $(ARGS)

bench-prune: $(VENV)/.installed-demo
	@exec $(BIN)/python benchmarks/prune.py $(ARGS)

bench-telemetry: $(VENV)/.installed-dev
	@exec $(BIN)/python benchmarks/telemetry.py $(ARGS)

bench-bursts: $(VENV)/.installed-dev
	@exec $(BIN)/python benchmarks/bursts.py $(ARGS)

bench-triggers: $(VENV)/.installed-dev
	@exec $(BIN)/python benchmarks/triggers.py $(ARGS)

bench-regression: $(VENV)/.installed-dev
	@exec $(BIN)/python benchmarks/regression.py $(ARGS)

bench-scaling: $(VENV)/.installed-dev
	@exec $(BIN)/python benchmarks/scaling.py $(ARGS)

bench-scrape: $(VENV)/.installed-demo
	@exec $(BIN)/python benchmarks/scrape.py $(ARGS)

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
