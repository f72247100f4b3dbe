PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: test lint demo clean

test: $(VENV)/dev lint  ## set up, lint and run the test suite, one process a core
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

lint: $(VENV)/dev
	$(BIN)/ruff check .

demo: $(VENV)/demo  ## estimate ages on the sample photos with the shipped model
	$(BIN)/python demo.py --img_dir misc/samples --output_dir demo_output

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
