# Every target except clean first creates or updates .venv.
PYTHON ?= python3
STAMP := .venv/.installed

.PHONY: demo test check bench clean

demo: $(STAMP)
	.venv/bin/costars render examples/pair.yaml --out out/demo --retries 8 --replace
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
	.venv/bin/python bench/kernel_counts.py
	.venv/bin/python bench/sdxl.py --tiny
	.venv/bin/python bench/training.py --tiny
	.venv/bin/python bench/waiting.py

# Removes build and cache folders; .venv and your own pictures in out/ are kept.
clean:
	rm -rf build dist out/demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/uv:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
	f"$(PYTHON) is Python {v[0]}.{v[1]}, costars needs 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q uv

# uv ignores pip's settings. Pass on the wheel folders of PIP_FIND_LINKS (for example with a CPU build of torch):
# pip separates them by spaces, uv by commas. Without any, Linux gets the CUDA build of torch.
$(STAMP): pyproject.toml | .venv/bin/uv
	UV_FIND_LINKS="$${UV_FIND_LINKS-$$(echo $$PIP_FIND_LINKS | tr ' ' ',')}" \
		.venv/bin/uv pip install --python .venv/bin/python -e '.[dev]'
	@touch $@
