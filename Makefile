# One command each. Every target but clean first makes or updates .venv.
PYTHON ?= python3
STAMP := .venv/.installed

.PHONY: demo test check bench clean

demo: $(STAMP)
	.venv/bin/costars render examples/pair.yaml --out out/demo --retries 8
	@echo "The picture is out/demo/picture.png"

test: $(STAMP)
	.venv/bin/python -m pytest -q -n 2 --dist loadfile

check: $(STAMP)
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: $(STAMP)
	.venv/bin/python bench/adapters.py
	.venv/bin/python bench/methods.py
	.venv/bin/python bench/sdxl.py --tiny
	.venv/bin/python bench/training.py --tiny

# What was built or cached; the environment and your own pictures stay.
clean:
	rm -rf build dist out/demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/uv:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
	f"$(PYTHON) is Python {v[0]}.{v[1]}, costars needs 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q uv

# uv does not read pip's settings. Folders of wheels that pip was told of (a CPU build of torch, say)
# are passed on; pip parts them by spaces, uv by commas. With none, Linux gets the CUDA build.
$(STAMP): pyproject.toml | .venv/bin/uv
	UV_FIND_LINKS="$${UV_FIND_LINKS-$$(echo $$PIP_FIND_LINKS | tr ' ' ',')}" \
		.venv/bin/uv pip install --python .venv/bin/python -e '.[dev]'
	@touch $@
