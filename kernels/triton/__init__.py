"""Triton kernels: one file per op, read from top to bottom (contract, launch shape, kernel, plan).

Importing this package needs neither Triton nor a GPU; a kernel file is imported at the first launch
of its op. The contract of an op is the docstring of `check` in `kernels/<op>.py`.
"""
