"""Measurements as a table, CSV, JSON, and beside an earlier run."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.kernels.harness import Measurement
from sdengine.errors import ConfigError

__all__ = ["HEADER", "compare", "read", "row", "write"]

HEADER = (
    f"{'case':40} {'kernel':6} {'cache':5} {'median us':>10} {'p10':>9} {'p90':>9}"
    f" {'baseline us':>12} {'GB/s':>6} {'GFLOP/s':>8} {'% of limit':>10}"
)


def row(m: Measurement) -> str:
    """One line of the table; blank where there is nothing to say."""

    def number(value: float, width: int, digits: int = 1) -> str:
        return f"{value:{width}.{digits}f}" if value else " " * width

    beside = number(m.baseline.median_us if m.baseline else 0.0, 12)
    return (
        f"{m.label:40} {m.backend:6} {m.cache:5}"
        f" {m.kernel.median_us:10.2f} {m.kernel.p10_us:9.2f} {m.kernel.p90_us:9.2f}"
        f" {beside} {number(m.gbps, 6)} {number(m.gflops, 8)} {number(m.percent_of_limit, 10, 0)}"
    )


def flat(m: Measurement) -> dict[str, Any]:
    """One CSV row."""
    found = asdict(m)
    for name in ("kernel", "baseline"):
        timing = found.pop(name) or {"median_us": "", "p10_us": "", "p90_us": ""}
        found |= {f"{name}_{key}": value for key, value in timing.items()}
    return found


def write(
    directory: Path, conditions: Mapping[str, object], measurements: Sequence[Measurement]
) -> None:
    """kernels.json and kernels.csv, into a directory that is there."""
    document = {"conditions": conditions, "measurements": [asdict(m) for m in measurements]}
    (directory / "kernels.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    rows = [flat(m) for m in measurements]
    with (directory / "kernels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["op"])
        writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[dict[str, Any]]:
    """Measurements of an earlier run.

    Raises:
        ConfigError: not a file that `write` made.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return list(document["measurements"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError.from_parts(
            f"a kernels.json of an earlier run in {path}", f"{type(error).__name__}: {error}"
        ) from None


def compare(old: Iterable[Mapping[str, Any]], new: Sequence[Measurement]) -> list[str]:
    """New over old medians; "faster" and "slower" only where the middle four fifths of the samples
    do not overlap. Machines drift: both runs must be of one machine, and of quiet minutes."""
    before = {(m["op"], m["backend"], m["label"], m["cache"]): m["kernel"] for m in old}
    lines = []
    for m in new:
        name = f"{m.op:16} {m.label:40} {m.backend:6} {m.cache:5}"
        was = before.get((m.op, m.backend, m.label, m.cache))
        if was is None:
            lines.append(f"{name} new")
            continue
        word = ""
        if m.kernel.p90_us < was["p10_us"]:
            word = "faster"
        elif m.kernel.p10_us > was["p90_us"]:
            word = "slower"
        ratio = m.kernel.median_us / was["median_us"]
        lines.append(f"{name} {ratio:6.2f} of old  {word}".rstrip())
    return lines
