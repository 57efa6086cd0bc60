"""The comparison as Markdown: a table per pair, and what holds of the claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
    return lines


def claim(cells: Cells) -> list[str]:
    """Where DySpec commits at least as many tokens a step, and where it does not."""
    found = {}
    for c in cells:
        setting = c["pair"], c["temperature"], c["verifier"], c["budget"]
        found.setdefault(setting, {})[c["method"]] = c
    both = {s: f for s, f in found.items() if {"dyspec", "sequoia"} <= set(f)}
    lines, held = [], 0
    for (pair, temperature, verifier, budget), methods in both.items():
        ours, theirs = methods["dyspec"], methods["sequoia"]
        ratio = ours["tokens_per_step"] / theirs["tokens_per_step"]
        held += ratio >= 1
        if ratio < 1:
            error = (ours["standard_error"] ** 2 + theirs["standard_error"] ** 2) ** 0.5
            gap = (theirs["tokens_per_step"] - ours["tokens_per_step"]) / (error or 1.0)
            lines.append(
                f"- below: {pair}, T {temperature:g}, {verifier}, budget {budget}: {ratio:.3f} of "
                f"Sequoia's ({gap:.1f} standard errors of the difference, taken as unpaired)"
            )
    return [f"At least as many in {held} of {len(both)} settings.", *lines]
