# make study       set up, train BatchNorm and no normalization on real digits with 4 seeds, show the table
# make test        set up what the tests need, run the fast ones
# make test-slow   run those that take more than two seconds each
# make docs        set up what the documentation needs, build it: docs/build/index.html
PYTHON ?= python3
INSTALL = .venv/bin/pip install --quiet --constraint constraints.txt --editable

study: .venv/installed
	.venv/bin/python -m bnstudy.train norm=batchnorm,none seed=0,1,2,3 hydra/launcher=joblib -m

test: .venv/installed-dev
	.venv/bin/python -m pytest

test-slow: .venv/installed-dev
	.venv/bin/python -m pytest -m 'slow and not long' --dist loadscope

docs: .venv/installed-docs
	.venv/bin/python -m sphinx --fail-on-warning --keep-going --jobs auto docs docs/build

# The stamps make a second call install nothing, and a changed requirement install again.
.venv/installed: pyproject.toml constraints.txt | .venv
	$(INSTALL) .
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv
	$(INSTALL) '.[dev]'
	touch .venv/installed $@

.venv/installed-docs: pyproject.toml constraints.txt | .venv
	$(INSTALL) '.[docs]'
	touch $@

.venv:
	$(PYTHON) -m venv $@

.PHONY: study test test-slow docs
