"""Drafters: where token trees come from. One file per kind; `factory.py` knows them by name."""
