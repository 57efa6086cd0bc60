"""Weights, caches and programs: packed query spans in, logits and committed tokens out."""
