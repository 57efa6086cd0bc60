"""The comparison as Markdown: a table per pair, and what holds of the claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.tree_methods.estimates import paired_ratio

__all__ = ["claim", "to_markdown"]

Cells = Sequence[Mapping[str, Any]]
NAMES = {
    "chain": "chain",
    "specinfer": "SpecInfer",
    "sequoia": "Sequoia",
    "dyspec-raw": "DySpec, raw",
    "dyspec": "DySpec, calibrated",
}


def to_markdown(document: Mapping[str, Any]) -> str:
    """Conditions, one table per pair, the claim."""
    lines = ["# Tokens per step of tree methods", ""]
    lines += [f"- {name}: {value}" for name, value in document["conditions"].items()]
    cells: Cells = document["cells"]
    for pair in dict.fromkeys(cell["pair"] for cell in cells):
        lines += ["", f"## Pair: {pair}", "", *table([c for c in cells if c["pair"] == pair])]
    lines += ["", "## DySpec with calibrated estimates against Sequoia's tree of the same size", ""]
    return "\n".join([*lines, *claim(cells)]) + "\n"


def table(cells: Cells) -> list[str]:
    """Methods by budgets; standard errors in brackets."""
    budgets = sorted({cell["budget"] for cell in cells})
    found = {
        (c["temperature"], c["verifier"], c["method"], c["budget"]): (
            f"{c['tokens_per_step']:.2f} ({c['standard_error']:.2f})"
        )
        for c in cells
    }
    lines = [f"| T | walk | method | {' | '.join(map(str, budgets))} |"]
    lines.append("|---" * (3 + len(budgets)) + "|")
    rows = dict.fromkeys(k[:3] for k in sorted(found, key=lambda k: (k[0], k[1])))
    for temperature, verifier, method in rows:
        values = [found.get((temperature, verifier, method, b), "") for b in budgets]
        walk = verifier if temperature > 0 else "both"
        start = f"| {temperature:g} | {walk} | {NAMES[method]} | "
        lines.append(start + " | ".join(values) + " |")
    return [*lines, *ratios(cells, budgets)]


def ratios(cells: Cells, budgets: Sequence[int]) -> list[str]:
    """Rows of DySpec over Sequoia on the same prompts; standard errors in brackets."""
    rows: dict[tuple[float, str], dict[int, str]] = {}
    for (_, temperature, verifier, budget), methods in both_methods(cells).items():
        times, error = paired_ratio(*(m["by_prompt"] for m in methods))
        rows.setdefault((temperature, verifier), {})[budget] = f"{times:.3f} ({error:.3f})"
    return [
        f"| {temperature:g} | {verifier if temperature > 0 else 'both'} | DySpec / Sequoia | "
        + " | ".join(found.get(budget, "") for budget in budgets)
        + " |"
        for (temperature, verifier), found in rows.items()
    ]


def both_methods(cells: Cells) -> dict[tuple, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """(DySpec's, Sequoia's) cells by pair, temperature, walk and budget, where both are known."""
    found: dict[tuple, dict[str, Mapping[str, Any]]] = {}
    for c in cells:
        setting = c["pair"], c["temperature"], c["verifier"], c["budget"]
        found.setdefault(setting, {})[c["method"]] = c
    return {
        setting: (methods["dyspec"], methods["sequoia"])
        for setting, methods in found.items()
        if {"dyspec", "sequoia"} <= set(methods)
    }


def claim(cells: Cells) -> list[str]:
    """Where DySpec commits at least as many tokens a step, and where it does not."""
    lines, held = [], 0
    both = both_methods(cells)
    for (pair, temperature, verifier, budget), (ours, theirs) in both.items():
        times, error = paired_ratio(ours["by_prompt"], theirs["by_prompt"])
        held += times >= 1
        if times < 1:
            lines.append(
                f"- below: {pair}, T {temperature:g}, {verifier}, budget {budget}: {times:.3f} of "
                f"Sequoia's, standard error {error:.3f}"
            )
    return [f"At least as many in {held} of {len(both)} settings.", *lines]
