"""What `benchmarks.gpu_suite` runs: one module per slice, each in a process of its own."""
