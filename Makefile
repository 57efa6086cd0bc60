# Fresh machine, two commands: `make demo` and `make test`. Both do their own set-up.
PYTHON ?= python3

native:  ## rebuild the CPU extension in place (developers)
	$(PYTHON) setup.py -q build_ext --inplace

.PHONY: native
