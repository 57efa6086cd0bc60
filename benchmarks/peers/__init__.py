"""Other engines beside this one; `python -m benchmarks.peers`."""
