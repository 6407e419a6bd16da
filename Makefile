# Every target starts from nothing but Python 3.11 and this checkout: .venv is made on first use.
PYTHON ?= python3.11
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: venv demo test test-slow test-faults check fix wheel clean-room try-distillation try-mining clean

venv: .venv/ready

demo: .venv/ready
	$(BIN)/tercet demo

# A file's tests share what they have set up, so files go to the two workers whole, longest first.
test: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The long forms, about an hour: fifty kills, 2,000 steps of soaking, 100,000 fuzzed inputs. A line
# for each part as it ends.
test-faults: .venv/ready
	$(BIN)/python -m pytest -m faults -vv --durations=0

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

fix: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What takes minutes a test: torch.compile, the exported model in an environment of its own.
test-slow: .venv/ready
	$(BIN)/python -m pytest -m slow

# Build the wheel and try it in a clean environment, away from the checkout.
wheel: .venv/ready
	bash tests/wheel.sh $(BIN)/python

# Run an exported model in an environment that holds onnxruntime, tokenizers and NumPy alone.
clean-room: .venv/ready
	$(BIN)/python -m pytest tests/test_without_torch.py -m slow

# Every part of the program behind docs/distillation.md, on a handful of texts.
try-distillation: .venv/ready
	$(BIN)/python -m pytest tests/test_distillation.py -m slow

# The same of "Does it pay?" in docs/mining.md.
try-mining: .venv/ready
	$(BIN)/python -m pytest tests/test_mining_quality.py -m slow

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
