"""Drafters: where token trees come from. One file per kind; `factory/kinds.py` knows them all."""
