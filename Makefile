.PHONY: check fix test test-all mutants fuzz bench docs

check: ## what CI runs
	bash .ci/run

fix: ## format and mend what can be mended
	uv run ruff format
	uv run ruff check --fix

test:
	uv run --all-extras pytest -n 2

test-all: ## with slow tests, and with GPU tests where there is a GPU
	uv run --all-extras pytest -n 2 -m ""

mutants: ## plant 120 bugs of a seed and those with a name, and count what the tests notice; less than 40 minutes
	uv run --all-extras python tools/mutants.py --seed 0 --count 120 --named

fuzz: ## read 10,000 mutated files of all formats; less than 30 minutes
	OMP_NUM_THREADS=1 uv run --all-extras python -m tests.faults.fuzz 10000 --seed 0

bench: ## start times, loader, training step
	uv run python benchmarks/start.py
	uv run python benchmarks/loader.py
	uv run --all-extras python -m benchmarks.loaders
	uv run python benchmarks/dinov2_step.py

docs: ## recipes and components as text
	uv run multissl list
