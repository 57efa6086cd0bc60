"""Machine, slices and records as one JSON document and one Markdown page."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.records import DONE, Record, read_records
from benchmarks.gpu.slices import RECORDS, SLICES, Endings, Slice

RESULTS, TABLE = "results.json", "results.md"
LIMITS_NOTE = (
    "Times are medians in microseconds unless a column says otherwise, the L2 cache swept before "
    "each sample except where they are hot; floor: the larger of bytes / measured bandwidth and "
    "operations / measured peak."
)


def write_report(out: Path, machine: dict[str, Any], endings: Endings) -> None:
    """Writes both files into `out`, from all slices that have run so far."""
    records = {part.name: read_records(out / RECORDS, part.name) for part in SLICES}
    document = {
        "machine": machine,
        "slices": {
            part.name: asdict(ending) if (ending := endings.get(part.name)) else None
            for part in SLICES
        },
        "records": {name: [asdict(r) for r in found] for name, found in records.items() if found},
    }
    replace(out / RESULTS, json.dumps(document, indent=1) + "\n")
    replace(out / TABLE, markdown(machine, endings, records))


def replace(path: Path, text: str) -> None:
    """Writes a file that is never seen half written."""
    staged = path.with_suffix(path.suffix + ".tmp")
    staged.write_text(text, encoding="utf-8")
    os.replace(staged, path)


def markdown(machine: dict[str, Any], endings: Endings, records: dict[str, list[Record]]) -> str:
    """The page: conditions, one line a slice, one table a slice that has run."""
    lines = [f"# GPU suite: {machine['device']}", "", conditions(machine), "", LIMITS_NOTE, ""]
    lines += ["| slice | | how it ended |", "|---|---|---|"]
    lines += [overview(part, endings, records[part.name]) for part in SLICES]
    for part in SLICES:
        if records[part.name]:
            lines += ["", f"## {part.name}: {part.title}", "", *table(records[part.name])]
    return "\n".join(lines) + "\n"


def conditions(machine: dict[str, Any]) -> str:
    """One paragraph that every figure below depends on."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    clocks = ", ".join(f"{name} {value}" for name, value in machine["clocks"].items())
    return (
        f"Compute capability {machine['compute_capability']}, {machine['multiprocessors']} "
        f"multiprocessors, {machine['memory_gb']} GB, L2 {machine['l2_mb']} MB; CUDA "
        f"{machine['cuda']}; {versions}; {clocks}; commit {machine['commit'] or 'unknown'}."
    )


def overview(part: Slice, endings: Endings, records: Sequence[Record]) -> str:
    """The slice's line."""
    ending = endings.get(part.name)
    if ending is None:
        return row([part.name, part.title, "not run yet"])
    settled = sum(record.status == DONE for record in records)
    text = f"{ending.status} ({settled} of {len(records)} cases)"
    return row([part.name, part.title, f"{text}: {ending.reason}" if ending.reason else text])


def table(records: Sequence[Record]) -> list[str]:
    """Cases as rows, values as columns in the order of their first appearance."""
    columns = list(dict.fromkeys(name for record in records for name in record.values))
    header = ["case", *columns]
    lines = [row(header), "|" + "---|" * len(header)]
    for record in records:
        cells = [shown(record.values.get(name)) for name in columns]
        if record.status != DONE:
            cells = [f"{record.status}: {record.reason}", *cells[1:]] if columns else cells
        lines.append(row([record.case, *cells]))
        if record.status != DONE and not columns:
            lines[-1] = row([f"{record.case}: {record.status}: {record.reason}"])
    return lines


def row(cells: Sequence[str]) -> str:
    """One line of a table; what would break it is escaped."""
    escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def shown(value: Any) -> str:
    """A number with three or more significant digits, nothing for nothing."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)
