# Two commands matter: `make book` builds the book, `make test` tests all of it.
# Both set themselves up. GNU make, bash, git and Python are all they need.

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt# empty: the newest of everything
PORT ?= 8000

BIN := .venv/bin
READY := .venv/ready
PYTEST := $(BIN)/pytest -n 2 --dist loadfile# both cores, a test module on one of them
CHAPTER := 00_the_ranking_log# the one that `make test` runs as Colab does

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help book test serve lint format unit site colab links stamp chromium clean

help:  ## this list
	@echo 'Three Clocks: ranking long user histories, fast'
	@awk -F':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

book: $(READY)  ## execute the chapters and build the site
	@$(BIN)/python book/build.py

test: lint chromium unit book site  ## everything that CI runs, cheapest first

serve: book  ## build, then serve the site on this machine
	@echo 'http://localhost:$(PORT)   (Ctrl-C stops)'
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

lint: $(READY)  ## check style, notebooks included, workflows and CITATION.cff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/actionlint
	$(BIN)/zizmor --offline --pedantic --quiet .github/workflows
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

format: $(READY)  ## put code into style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

unit: $(READY)  ## the tests that need no built site
	OMP_NUM_THREADS=1 $(PYTEST) --ignore tests/book --ignore tests/colab

site: book chromium  ## the built site in Chromium, and a chapter as Colab runs it
	$(PYTEST) tests/book 'tests/colab/test_colab.py::test_chapter[$(CHAPTER)]'

colab: $(READY)  ## every chapter as Colab runs it, with nothing cached
	rm -rf .cache/colab/data
	RECSYS_EDU_CACHE=$(CURDIR)/.cache/colab/data $(BIN)/pytest tests/colab

links: book  ## check every link of the book
	$(BIN)/jupyter-book build --builder linkcheck --path-output .cache/links .cache/stage

stamp:  ## write REPOSITORY=https://... into _config.yml
	sed -i '/^repository:/,/^[^ #]/ s|^  url: .*|  url: $(REPOSITORY)|' _config.yml
	grep -q '^  url: $(REPOSITORY)$$' _config.yml

clean:  ## remove what was built and cached; .venv stays
	rm -rf _build .cache .pytest_cache .ruff_cache .hypothesis

# --- set-up ---------------------------------------------------------------------------

# $(call apt,PACKAGES): install Debian packages where we may, or say what to type.
define apt
{ echo 'Installing $(1) with apt-get'; \
  sudo=$$([ $$(id -u) = 0 ] || echo sudo -n); \
  $$sudo apt-get -qq update && $$sudo env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq --yes --no-install-recommends install $(1) >/dev/null || \
  { echo 'Install it, then make again:  sudo apt-get install $(1)' >&2; false; }; }
endef

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'Python 3.11 or newer is needed, and $(PYTHON) is not.' >&2; \
	  echo 'Name another:  make $(MAKECMDGOALS) PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(call apt,python3-venv)
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	@mkdir -p .cache
	@echo 'Installing into .venv: 2 GB, some minutes, once. Log: .cache/install.log'
	@$(BIN)/python -m pip install --progress-bar off --disable-pip-version-check \
	    $(addprefix --constraint ,$(CONSTRAINTS)) --editable '.[book,test]' 2>&1 \
	  | tee .cache/install.log | awk ' \
	    /^(Collecting|Processing)/ && ++n % 20 == 0 { print "  " n " packages found" } \
	    /[0-9][0-9][0-9][.][0-9] MB[)]$$/ { print } \
	    /^Installing collected/ { print "  installing them" } { fflush() }' \
	  || { tail -n 20 .cache/install.log >&2; exit 1; }
	@touch $@

# Playwright brings its own Node, and that needs libatomic, which a small Debian lacks.
chromium: $(READY)
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome; \
	  } >/dev/null && $(BIN)/playwright --version >/dev/null 2>&1 \
	  || $(call apt,chromium fonts-liberation libatomic1) \
	  || { echo 'On Ubuntu, Chromium is a snap:  sudo snap install chromium' >&2; exit 1; }
