# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Every target does its own set-up first, and does it only once.

PYTHON ?= python3
BIN := .venv/bin
# Tools find each other, and Ansible finds its own Python, through the virtual environment.
export PATH := $(CURDIR)/$(BIN):$(PATH)
READY := .venv/.ready
# What the lab's tests end with when the emulator broke down, and until when there is time for the whole story again.
BROKE_DOWN := 75
AGAIN_WITHIN_S := 300
# When the lab's tests have to be over: CI ends after thirty minutes, and has set itself up before.
END_WITHIN_S := 1560
# What the lab's tests leave here when their host's boot is timed: from then on it may share the machine.
BOOTED := build/test/booted
# CPUs for the unit tests; 0: no process of their own.
UNIT_CPUS := auto
# Which of molecule/ to run.
SCENARIO := default
SITE := build/site
LINK := build/collections/ansible_collections/holdfast/kvm

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test bench faults lint unit package awx lab-test molecule docs clean

help: ## list what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup ## upgrade a lab hypervisor under its guests, and show what happened
	@$(BIN)/python -m holdfast.demo

# The lab's emulated host keeps one CPU busy; once its boot is timed, what needs no host runs on another one meanwhile,
# and is shown afterwards.
test: setup lint ## everything that CI runs
	@mkdir -p build; rm -f $(BOOTED); \
	$(MAKE) --no-print-directory lab-test & lab=$$!; \
	trap 'kill $$lab' INT TERM; \
	while kill -0 $$lab 2>/dev/null && [ ! -e $(BOOTED) ]; do sleep 1; done; \
	status=0; $(MAKE) --no-print-directory unit package awx UNIT_CPUS=0 >build/beside.log 2>&1 || status=$$?; \
	wait $$lab || status=$$?; cat build/beside.log; exit $$status

bench: setup ## measure the pause against the alternatives, into build/bench/
	@$(BIN)/holdfast bench --output build/bench

faults: setup ## break things during live updates, one table into build/faults/
	@$(BIN)/holdfast faults --output build/faults --kills 50
	@pytest -x -m 'faults or not faults' tests/lab

setup: $(READY) $(LINK) ## system packages, .venv and the link that Ansible follows
	@:

lint: setup ## style, types, YAML, Ansible and changelog
	@echo "== lint"
	@ruff check --quiet --output-format concise .
	@ruff format --quiet --check . || { ruff format --check .; false; }
	@mypy --no-error-summary
	@yamllint --strict .
	@ansible-lint --profile production --offline -q --nocolor
	@antsibull-changelog lint

unit: setup ## decisions, without a host
	@echo "== unit"
	@pytest -q -n $(UNIT_CPUS) -o faulthandler_timeout=120 tests/unit

package: setup ## wheel and collection: build, install, sanity
	@echo "== package"
	@pytest -q -o faulthandler_timeout=120 tests/packaging

awx: setup ## what awx/ puts into AWX, against a stand-in
	@echo "== awx"
	@pytest -q -o faulthandler_timeout=120 tests/awx

lab-test: setup ## a real upgrade of a lab hypervisor, seen from outside
	@echo "== lab-test"
	@begun=$$(date +%s); \
	export HOLDFAST_TEST_END=$$(( begun + $(END_WITHIN_S) )); \
	while status=0; pytest -x --durations=20 tests/lab || status=$$?; [ $$status -eq $(BROKE_DOWN) ]; do \
		[ $$(( $$(date +%s) - begun )) -lt $(AGAIN_WITHIN_S) ] || break; \
		echo "the lab's emulator broke down, a known fault of it: the whole story once more"; \
	done; exit $$status

molecule: setup ## one Molecule scenario in the lab: SCENARIO=default, evacuate or faults
	@MOLECULE_GLOB='molecule/*/molecule.yml' $(BIN)/molecule test --scenario-name $(SCENARIO)

docs: setup ## the documentation as a site, into build/site/html
	@$(BIN)/python -m pip install -qq --editable '.[docs]'
	@rm -rf $(SITE) && mkdir -p $(SITE)/docs && cp -r docs/. $(SITE)/docs && cp README.md $(SITE) && cp CONTRIBUTING.md $(SITE)/docs
	@mkdir -m 755 $(SITE)/docs/collection
	@ANSIBLE_COLLECTIONS_PATH=build/collections antsibull-docs collection --use-current --squash-hierarchy --fail-on-error \
		--no-add-antsibull-docs-version --dest-dir $(SITE)/docs/collection holdfast.kvm
	@sphinx-build -q --fail-on-warning --keep-going $(SITE)/docs $(SITE)/html
	@echo "$(SITE)/html/index.html"

clean: ## stop the lab, remove what set-up, tests and builds made
	@[ ! -d build/lab ] || [ ! -x $(BIN)/holdfast ] || $(BIN)/holdfast lab down
	@rm -rf .venv build dist .ansible .mypy_cache .pytest_cache .ruff_cache

$(READY): pyproject.toml galaxy.yml hatch_build.py tools/setup-system
	@tools/setup-system $(PYTHON)
	@$(BIN)/python -c '' 2>/dev/null || { rm -rf .venv && $(PYTHON) -m venv .venv; }
	@echo "setup: installing Python packages into .venv"
	@$(BIN)/python -m pip install -qq --editable '.[dev]'
	@touch $@

# Ansible and Python find the collection by this path.
$(LINK):
	@mkdir -p $(@D)
	@ln -sfn ../../../.. $@
