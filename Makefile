# make demo    install into .venv, then run three families on digits and compare them
# make test    the same environment plus test tools: lint, types, tests
# make test-cluster   tests of jobs, of clusters of several nodes and of object storage
# make test-faults    whatever may go wrong with a run, as one table; -long with 500 seeds
# make check   lint, imports and types only
# make hashes  write requirements-hashed.txt anew from constraints.txt; needs uv
# make clean   remove .venv and caches; runs/ stays
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(shell \
	$(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MLFLOW_DISABLE_TELEMETRY := true

# Both stamps: `make demo` after `make test` finds the runtime installed, and the other way round.
RUNTIME := .venv/.runtime-installed
TEST := .venv/.test-installed
REQUIREMENTS := pyproject.toml constraints.txt

.PHONY: demo test test-cluster test-faults test-faults-long check hashes clean
.DEFAULT_GOAL := demo

demo: $(RUNTIME)
	@$(BIN)/orchestrator demo

test: check
	@echo "make: tests, two files at a time"
	@$(PYTEST) -m "not cluster and not faults" --durations 20

test-cluster: $(TEST)
	@echo "make: tests of jobs, of clusters of several nodes and of object storage"
	@$(PYTEST) -m cluster --durations 20

FAULTS := tests/integration/test_faults.py tests/integration/test_two_nodes.py \
	tests/unit/simulate/test_schedules.py

test-faults: $(TEST)
	@echo "make: faults"
	@$(PYTEST) --dist worksteal $(FAULTS) --durations 20

test-faults-long: $(TEST)
	@echo "make: faults, 500 seeds"
	@FAULT_SEEDS=500 $(PYTEST) --dist worksteal $(FAULTS) --durations 20

check: $(TEST)
	@echo "make: lint and types"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/mypy

# Without the addresses of a registry: whoever installs says where from.
hashes:
	@command -v uv >/dev/null || { echo "make: needs uv. Fix: pip install uv" >&2; exit 1; }
	@grep '^#' requirements-hashed.txt >.hashes
	@uv pip compile pyproject.toml --extra tpe -c constraints.txt --python-version 3.11 \
		--python-platform x86_64-unknown-linux-gnu --generate-hashes --no-emit-index-url \
		--no-header --no-annotate --quiet >>.hashes || { rm .hashes; exit 1; }
	@mv .hashes requirements-hashed.txt

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(RUNTIME): $(REQUIREMENTS) | $(BIN)/pip
	@$(call install,.)
	@touch $(RUNTIME)

$(TEST): $(REQUIREMENTS) | $(BIN)/pip
	@$(call install,.[test])
	@touch $(RUNTIME) $(TEST)

$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo "make: needs Python 3.11 or newer, found $$(python3 --version \
		2>&1). Fix: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "make: creating .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv

# pip's own talk goes to a log; a line every 10 s says how far it is.
define install
set -e; log=.venv/install.log; start=$$(date +%s); total=$$(grep -c == constraints.txt); \
echo "make: installing $(1) from constraints.txt, up to $$total packages, about 5 GB and 2-3 minutes"; \
$(BIN)/python -m pip install --progress-bar off -c constraints.txt -e '$(1)' >$$log 2>&1 & pid=$$!; \
trap 'kill $$pid 2>/dev/null; exit 130' INT TERM; \
while kill -0 $$pid 2>/dev/null; do \
	sleep 1; seconds=$$(( $$(date +%s) - start )); \
	if [ $$(( seconds % 10 )) -eq 9 ]; then \
		if grep -q '^Installing collected' $$log; then step="unpacking into .venv"; \
		else step="$$(grep -c '^Collecting' $$log || true) of $$total packages fetched"; fi; \
		echo "make: $$step, $$seconds s"; \
	fi; \
done; \
if ! wait $$pid; then grep -i '^error' $$log >&2 || tail -n 20 $$log >&2; \
	echo "make: installation failed; all of pip's output is in $$log" >&2; exit 1; fi; \
echo "make: installed in $$(( $$(date +%s) - start )) s"
endef
