# Shortcuts; the scripts do the work.
.PHONY: quickstart test check format bench clean

quickstart:
	bin/quickstart

test:
	bin/test

# What must hold before a change lands.
check:
	.ci/run

format:
	.venv/bin/python -m ruff check --fix
	.venv/bin/python -m ruff format

bench:
	.venv/bin/python benchmarks/run.py --quick

clean:
	rm -rf .venv .venv-* .quickstart .dev .pytest_cache .mypy_cache .ruff_cache .hypothesis
