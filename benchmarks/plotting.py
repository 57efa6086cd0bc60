"""Plots of benchmarks: one style, files that are the same for the same figures."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdengine.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLORS", "panels", "require_matplotlib", "save"]

COLORS = {
    "plain": "#777777",
    "dyspec": "#0b6e99",
    "chain": "#c2571a",
    "kary": "#5b8c2a",
    "sampled": "#8e5ea2",
    "ngram": "#b8860b",
}
PANEL_INCHES = (3.6, 3.0)


def require_matplotlib() -> None:
    """Makes sure that plots can be drawn.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError.from_parts(
            "matplotlib for the plots",
            "an environment without it",
            "pip install 'sdengine[train]' has it, --no-plots does without",
        )


def panels(count: int, conditions: str, rows: int = 1) -> tuple[Figure, list[Any]]:
    """A figure of equal panels, row by row, with the conditions of its figures below.

    Returns:
        The figure and `rows` times `count` axes.
    """
    from matplotlib.figure import Figure

    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * count, height * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, count, squeeze=False).ravel().tolist()
    for ax in axes:
        ax.grid(True, color="#dddddd", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(conditions, fontsize=7, color="#555555")
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Writes SVG or PNG by the path's suffix, without dates or random names in it."""
    import matplotlib

    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        figure.savefig(path, dpi=150, metadata=metadata)
