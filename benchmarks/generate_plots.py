"""The plots of the end-to-end benchmark, drawn from its document alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.conditions import where
from benchmarks.generate_report import PLAIN
from benchmarks.plotting import COLORS, panels, save
from benchmarks.reliability import NUM_BINS, ReliabilityBin

__all__ = ["draw_all", "draw_speedup", "short_conditions"]

Rows = Sequence[Mapping[str, Any]]


def draw_all(document: Mapping[str, Any], directory: Path) -> list[Path]:
    """Draws what the document has figures for.

    Returns:
        The files written.
    """
    rows, conditions = document["rows"], short_conditions(document["conditions"])
    written = []
    for name, draw in (
        ("speedup", draw_speedup),
        ("acceptance", draw_acceptance),
        ("reliability", draw_reliability),
    ):
        written.append(directory / f"{name}.svg")
        draw(rows, conditions, written[-1])
    if document["costs"] is not None:
        written.append(directory / "costs.svg")
        draw_costs(document["costs"], conditions, written[-1])
    return written


def short_conditions(conditions: Mapping[str, Any]) -> str:
    """Conditions as two lines below a plot."""
    first = [where(conditions), f"commit {conditions['commit']}"]
    second = [f"{name} {conditions[name]}" for name in ("model", "dtype", "verifier")]
    second += [conditions["versions"]]
    lines = ", ".join(map(str, first)), ", ".join(map(str, second))
    return "\n".join((*lines, *filter(None, [conditions.get("machine limits")])))


def draw_speedup(rows: Rows, conditions: str, path: Path) -> None:
    """Speed over plain decoding by fixed budget; the adaptive one as a dashed line."""
    temperatures = sorted({row["temperature"] for row in rows})
    sizes = sorted({row["batch_size"] for row in rows})
    figure, axes = panels(len(temperatures), conditions, len(sizes))
    places = [(size, temperature) for size in sizes for temperature in temperatures]
    for ax, (size, temperature) in zip(axes, places):
        here = [r for r in rows if (r["batch_size"], r["temperature"]) == (size, temperature)]
        for method in dict.fromkeys(r["method"] for r in here if r["method"] != PLAIN):
            mine = [r for r in here if r["method"] == method]
            fixed = sorted((int(r["budget"]), r["ratio"]) for r in mine if r["budget"].isdigit())
            ax.plot(*zip(*fixed), "o-", ms=3, color=COLORS[method], label=method) if fixed else None
            for r in mine:
                if r["budget"] == "adaptive":
                    label = None if fixed else method
                    ax.axhline(r["ratio"], ls="--", lw=1, color=COLORS[method], label=label)
        ax.axhline(1.0, lw=1, color=COLORS[PLAIN])
        ax.set_title(f"T = {temperature:g}, batch {size}", fontsize=9)
        ax.set_xlabel("node budget (dashed: adaptive)", fontsize=8)
        ax.set_ylabel("speed over plain decoding", fontsize=8)
    axes[0].legend(fontsize=7)
    save(figure, path)


def draw_acceptance(rows: Rows, conditions: str, path: Path) -> None:
    """Share of steps that accepted at each depth, with every method's largest fixed budget."""
    temperatures = sorted({row["temperature"] for row in rows})
    size = min(row["batch_size"] for row in rows)
    figure, axes = panels(len(temperatures), conditions)
    for ax, temperature in zip(axes, temperatures):
        here = [r for r in rows if (r["batch_size"], r["temperature"]) == (size, temperature)]
        for method in dict.fromkeys(r["method"] for r in here if r["method"] != PLAIN):
            mine = [r for r in here if r["method"] == method and r["acceptance_by_depth"]]
            if not mine:
                continue
            row = max(mine, key=lambda r: int(r["budget"]) if r["budget"].isdigit() else 0)
            depths = range(1, len(row["acceptance_by_depth"]) + 1)
            label = f"{method}, {row['budget']}"
            ax.plot(
                depths, row["acceptance_by_depth"], "o-", ms=3, color=COLORS[method], label=label
            )
        ax.set_title(f"T = {temperature:g}, batch {size}", fontsize=9)
        ax.set_xlabel("depth in the tree", fontsize=8)
        ax.set_ylabel("share of steps that accept", fontsize=8)
        ax.set_ylim(0, 1)
        ax.legend(fontsize=7)
    save(figure, path)


def draw_reliability(rows: Rows, conditions: str, path: Path) -> None:
    """Predicted against seen acceptance of drafted children, all budgets of a method together."""
    temperatures = sorted({row["temperature"] for row in rows})
    figure, axes = panels(len(temperatures), conditions)
    for ax, temperature in zip(axes, temperatures):
        here = [r for r in rows if r["temperature"] == temperature and r["reliability"]]
        ax.plot([0, 1], [0, 1], lw=1, color=COLORS[PLAIN])
        for method in dict.fromkeys(r["method"] for r in here):
            bins = pooled([b for r in here if r["method"] == method for b in r["reliability"]])
            points = [(b.predicted, b.seen) for b in bins]
            areas = [min(8 + b.count**0.5, 80) for b in bins]
            ax.scatter(*zip(*points), s=areas, color=COLORS[method], alpha=0.6, label=method)
        ax.set_title(f"T = {temperature:g}", fontsize=9)
        ax.set_xlabel("predicted acceptance (area: count)", fontsize=8)
        ax.set_ylabel("seen acceptance", fontsize=8)
        if here:
            ax.legend(fontsize=7)
    save(figure, path)


def pooled(bins: Sequence[Mapping[str, Any]]) -> list[ReliabilityBin]:
    """Bins of several rows put together, tenth by tenth."""
    tenths: dict[int, list[Mapping[str, Any]]] = {}
    for b in bins:
        tenths.setdefault(min(int(b["predicted"] * NUM_BINS), NUM_BINS - 1), []).append(b)
    result = []
    for _, group in sorted(tenths.items()):
        count = sum(b["count"] for b in group)
        means = (sum(b[name] * b["count"] for b in group) / count for name in ("predicted", "seen"))
        result.append(ReliabilityBin(*means, count))
    return result


def draw_costs(costs: Mapping[str, Any], conditions: str, path: Path) -> None:
    """T(M) of the target, and what a line through the first row would be."""
    figure, (ax,) = panels(1, conditions)
    rows, times = costs["rows"], [1e3 * s for s in costs["verify_s"]]
    ax.plot(rows, times, "o-", ms=3, color=COLORS["dyspec"], label="target pass, measured")
    ax.axhline(times[0], lw=1, ls=":", color=COLORS[PLAIN], label="one row")
    ax.set_xlabel("rows M of a target pass", fontsize=8)
    ax.set_ylabel("ms", fontsize=8)
    ax.set_ylim(0)
    ax.legend(fontsize=7)
    save(figure, path)
