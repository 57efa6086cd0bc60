"""Verifiers: which path of a tree is committed, and with which last token. All of these are
lossless."""
