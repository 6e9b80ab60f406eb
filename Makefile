# What a developer types. Each target that matters is a script of its own, for machines without make.

.DEFAULT_GOAL := help
.PHONY: help demo example-logistics test soak chaos check fix bench bench-peers bench-docs docs formal

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## see it run: two dispatchers, 60 jobs, a kill -9 of the leader half-way (sh scripts/demo)
	@sh scripts/demo

example-logistics: ## a simulated week of examples/logistics: lanes found against those planted (sh scripts/example-logistics)
	@sh scripts/example-logistics $(ARGS)

test: ## the whole suite; make test ARGS="-k leader" for a part of it (sh scripts/test)
	@sh scripts/test $(ARGS)

soak: ## the same tests at large counts, one after the other, with their figures
	@sh scripts/environment dev
	@PGQUEUE_TEST_SOAK=1 .venv/bin/python -m pytest -m soak -s -p no:xdist --timeout=600 $(ARGS)

chaos: ## 30 minutes of faults of every kind under load, then the verdict; ARGS="--seconds 180 --seed 7" for less
	@sh scripts/environment dev
	@PYTHONPATH=tests .venv/bin/python -m chaos $(ARGS)

check: ## lint, format, types, layers (sh scripts/check)
	@sh scripts/check

fix: ## let ruff mend what it can
	@sh scripts/environment dev
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

formal: ## every state of the protocol's models, by spin (sh formal/check)
	@sh formal/check $(ARGS)

bench: ## speed and memory on this machine; make bench ARGS="S3 S4 --quick" for a part of it
	@sh scripts/environment dev
	@.venv/bin/python bench/run.py $(ARGS)

bench-peers: ## the same beside other queues, which it installs into a directory of their own
	@sh scripts/environment dev
	@.venv/bin/python bench/rivals.py $(ARGS)

bench-docs: ## write what both saved in bench/figures into docs/performance.md
	@sh scripts/environment dev
	@.venv/bin/python bench/performance_page.py

docs: ## write docs/cli.md from the commands' help, docs/reliability.md from reports of runs
	@sh scripts/environment dev
	@.venv/bin/python scripts/docs.py
	@.venv/bin/python scripts/reliability.py
