"""The progress bar of benchmarks that take minutes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from sdengine.cli.terminal import is_terminal

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["progress_bar"]


def progress_bar() -> Progress:
    """A bar on standard error that is gone at the end; nothing where nobody watches."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    return Progress(console=console, disable=not is_terminal(sys.stderr), transient=True)
