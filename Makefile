# Two commands: make run (set everything up, boot real guests, report) and make test (the suites on the control guest, then
# the harness's own tests).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Each start of pytest compiles 200 modules of the harness, which takes a second, unless Python may keep the result.
export PYTHONDONTWRITEBYTECODE :=
# Labs that run at the same time; 0 for as many as this machine can run.
WORKERS ?= 0
SELFTEST = $(BIN)/pytest tests -q --durations 25 --durations-min 10 -m 'not slow' -n $(if $(filter 0,$(WORKERS)),auto,$(WORKERS)) --dist worksteal

.PHONY: run test selftest lint unit explore setup setup-tests bench bench-against planted report nightly faults clean

run: setup
	$(BIN)/fxh run --with-release -n $(WORKERS)

# No case may fail on the control guest, except as a known issue. Both parts run to the end, whatever the result of the first; the last line is pytest's
# summary.
test: lint setup-tests
	@status=0; $(BIN)/fxh run -n $(WORKERS) || status=$$?; \
	$(SELFTEST) && exit $$status

# The tests without the suites.
selftest: lint setup-tests
	$(SELFTEST)

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell
	$(BIN)/python tests/style.py
	$(BIN)/fxh check

# Without a lab: minutes.
unit: $(VENV)/dev
	$(BIN)/pytest tests/unit -q

# The property tests with new random examples, 2000 of each.
explore: $(VENV)/dev
	FXH_HYPOTHESIS=explore $(BIN)/pytest tests/unit -q -n auto -m hypothesis

setup: $(VENV)/installed
	$(BIN)/fxh setup

setup-tests: $(VENV)/installed
	$(BIN)/fxh setup --tests

bench: setup
	$(BIN)/python bench/lab.py
	$(BIN)/python bench/boot.py --unspared
	$(BIN)/python bench/console.py
	$(BIN)/python bench/report.py
	$(BIN)/python bench/history.py
	$(BIN)/python bench/page.py
	$(BIN)/python bench/trace.py
	$(BIN)/python bench/case.py
	$(BIN)/python bench/symbols.py
	$(BIN)/python bench/places.py
	$(BIN)/python bench/throughput.py

# This checkout's HEAD and the revision REV in turn, on this machine: an hour or two.
bench-against: setup
	$(BIN)/python bench/against.py --against $(REV) --whole

# Plant regressions and run the real suites: each must be found. With IMAGE also those in FreeBSD; with SRC, a FreeBSD source tree,
# also take fixes back out of its kernel, which boots the world of IMAGE.
planted: setup
	$(if $(SRC),$(if $(IMAGE),,$(error make planted SRC=TREE needs IMAGE=NAME, an image of this tree)))
	@status=0; $(BIN)/python tests/planted/score.py -n $(WORKERS) $(if $(IMAGE),--image $(IMAGE)) || status=$$?; \
	$(if $(SRC),$(BIN)/python tests/planted/reversals.py --src $(SRC) --image $(IMAGE) || status=$$?;) exit $$status

# Rewrite the page, mail and JSON of the latest run; print the verdict and their paths.
report: $(VENV)/installed
	$(BIN)/fxh report || test $$? -eq 1

# [nightly] of fxh.toml; see docs/nightly/ for systemd, cron and CI systems.
nightly: setup
	@$(BIN)/fxh nightly

# Hosts that die, hang, fill up: an hour or so, one lab.
faults: $(VENV)/dev setup
	$(BIN)/pytest tests/faults -q
	$(BIN)/pytest tests/lab -q -m slow


$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "make: python3-venv is missing: sudo apt-get install python3-venv" >&2; \
	  [ "$$(id -u)" = 0 ] && apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv \
	  && $(PYTHON) -m venv $(VENV); }

$(VENV)/installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install --progress-bar off --disable-pip-version-check -e .
	touch $@

$(VENV)/dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build dist *.egg-info reports/runs reports/latest reports/blame reports/bisect reports/repro
