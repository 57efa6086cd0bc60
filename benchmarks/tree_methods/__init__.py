"""Tokens per step of tree methods on one pair, with the engine's own growing and verifying."""
