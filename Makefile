.PHONY: check fast format

check:  ## what CI runs, in the environment at hand
	ruff check .
	ruff format --check .
	pyright
	lint-imports
	pytest

fast:  ## style and the fast tests
	ruff check .
	ruff format --check .
	pytest -m "not slow"

format:  ## rewrite to the house style
	ruff check --fix .
	ruff format .
