# make study   set up, train BatchNorm against no normalization on real digits, show the difference
# make test    set up what the tests need, run them
PYTHON ?= python3

study: .venv/installed
	.venv/bin/python -m bnstudy.train norm=batchnorm,none -m

test: .venv/installed-dev
	.venv/bin/python -m pytest

# The stamps make a second call install nothing, and a changed requirement install again.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.PHONY: study test
