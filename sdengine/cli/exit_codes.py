"""Exit codes of every command."""

from __future__ import annotations

__all__ = ["BROKEN_PIPE", "FAILED", "INTERRUPTED", "USAGE"]

FAILED = 1
USAGE = 2
"""Wrong arguments, or input that cannot be used."""
INTERRUPTED = 128 + 2
BROKEN_PIPE = 128 + 13
