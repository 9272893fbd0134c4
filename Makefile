# make study   set up, train BatchNorm against no normalization on real digits, show the difference
# make test    set up what the tests need, run them
PYTHON ?= python3
# Bytecode is compiled when a module is first imported, not of all that torch comes with.
INSTALL = .venv/bin/pip install --quiet --no-compile --constraint constraints.txt --editable

study: .venv/installed
	.venv/bin/python -m bnstudy.train norm=batchnorm,none -m

test: .venv/installed-dev
	.venv/bin/python -m pytest

# The stamps make a second call install nothing, and a changed requirement install again.
.venv/installed: pyproject.toml constraints.txt | .venv
	$(INSTALL) .
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv
	$(INSTALL) '.[dev]'
	touch .venv/installed $@

.venv:
	$(PYTHON) -m venv $@

.PHONY: study test
