"""Microbenchmarks and end-to-end measurements; every figure is printed with its conditions."""
