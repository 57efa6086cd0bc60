"""Ops of sdengine: contracts, references and kernels. Knows nothing of the engine above it."""
