"""Microbenchmarks of the ops: one harness for all (`python -m benchmarks.kernels`), more per op
where it needs a curve."""
