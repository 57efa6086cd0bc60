"""Directories of results, made before the work whose results they are to hold."""

from __future__ import annotations

import os
from pathlib import Path

from sdengine.errors import ConfigError

__all__ = ["make_directory"]


def make_directory(option: str, path: Path) -> None:
    """Makes a directory unless it is there: after hours of work it is too late to find out that it
    cannot be written to.

    Args:
        option: that names it, for the error.
        path: of the directory.

    Raises:
        ConfigError: it cannot be made, or nothing can be written there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(path, os.W_OK | os.X_OK) else "no permission to write there"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise ConfigError.from_parts(
            f"{option} to be a directory to write to", f"{path}: {reason}", "name another one"
        )
