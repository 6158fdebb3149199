# Every target starts from a clean clone: `make install` makes .venv from the hash-checked lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Each process of the platform reads every module; compiled once, it starts in half the time.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: up test lint install faults bench lock clean

up: install                 ## run the whole platform in the foreground
	$(BIN)/cloister up

test: install lint          ## lint, types, all tests
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

faults: install             ## what kills, cuts and terminates, alone and in full
	$(BIN)/pytest -m "" tests/cell/test_sequencer_crashes.py tests/cell/test_sequencer_losses.py \
		tests/cell/test_sequencer_poison.py tests/cell/test_cell_beside_naive.py \
		tests/infra/test_supervisor.py tests/router/test_faults.py \
		tests/control_plane/test_move_steps.py tests/control_plane/test_move_copy.py \
		tests/control_plane/test_move_history.py tests/control_plane/test_move_disk.py \
		tests/control_plane/test_move_silence.py \
		tests/control_plane/test_move_reclaim.py \
		tests/e2e/test_move.py tests/e2e/test_move_in_flight.py \
		tests/e2e/test_move_faults.py tests/e2e/test_berka.py \
		tests/e2e/test_robustness_through_router.py
	CLOISTER_LIST_TRANSACTIONS=500000 $(BIN)/pytest -m "" tests/cell/test_list_plans.py
	CLOISTER_GENERATED_EXAMPLES=40 CLOISTER_NAIVE_EXAMPLES=40 $(BIN)/pytest -m "" \
		tests/cell/test_generated_requests.py tests/cell/test_cell_beside_naive.py

bench: install              ## every benchmark; writes benchmarks/out/*.json and prints the table
	$(BIN)/python -m benchmarks

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps --no-compile --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-compile --no-build-isolation -e .
	touch $(STAMP)

lock:                       ## refresh requirements.lock (hashes only, no address)
	uv pip compile --universal --python-version 3.11 --extra dev --extra opentelemetry --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header -q -o requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) build *.egg-info
