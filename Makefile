PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: test lint demo web web-test clean

test: $(VENV)/dev lint  ## set up, lint and run the test suite, one process a core
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

lint: $(VENV)/dev
	$(BIN)/ruff check .

demo: $(VENV)/demo  ## estimate ages on the sample photos with the shipped model
	$(BIN)/python demo.py --img_dir misc/samples --output_dir demo_output

web: web/node_modules/.package-lock.json  ## build the web page, one file: web/dist/index.html
	node web/build.js $${WEB_NETWORKS:+--networks "$$WEB_NETWORKS"}

web-test: $(VENV)/demo  ## test the page in Chromium; skipped where node or Chromium is missing
	@if command -v npm > /dev/null; \
	then $(MAKE) web && PYTHON="$$PWD/$(BIN)/python" npm --prefix web test; \
	else echo "web-test is skipped: it needs Node 20 or newer (apt-get install nodejs npm)"; fi

web/node_modules/.package-lock.json: web/package-lock.json
	@command -v npm > /dev/null || { echo "the web page needs Node 20 or newer: apt-get install nodejs npm"; exit 1; }
	npm ci --prefix web --ignore-scripts --no-audit --no-fund

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo: $(VENV)/bin/python requirements-demo.txt  # what estimating ages needs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-demo.txt
	touch $@

$(VENV)/user: $(VENV)/bin/python requirements.txt requirements-demo.txt  # and training
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/dev: $(VENV)/user requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV)
