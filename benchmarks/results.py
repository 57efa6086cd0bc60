"""The results page of this machine: measures its slices, draws its plots, writes its text.

    python -m benchmarks.results                        # every slice, a few minutes each
    python -m benchmarks.results dyspec probe           # some, the page from all that there are
    python -m benchmarks.results --render-only --headline

A page lies in `benchmarks/results/<machine>/`: JSON of every slice, README.md and plots made from
the JSON alone. Figures of different slices are of different minutes; ratios are within one.
--headline also puts the page's first table and plot into the README of the repository.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import generate, probe
from benchmarks.conditions import ROOT, is_gpu, where
from benchmarks.generate_plots import draw_all
from benchmarks.generate_report import PLAIN, to_markdown
from benchmarks.kernels import __main__ as kernels
from benchmarks.plotting import require_matplotlib
from sdengine.cli.info import kernels_isa, processor
from sdengine.cli.main import run_alone
from sdengine.cli.options import LineParser, add_debug, add_device_option
from sdengine.core.config import EngineConfig
from sdengine.core.env import choose_num_threads, read_environment
from sdengine.errors import ConfigError
from sdengine.runner.placement import choose_placement
from sdengine.train.directories import make_directory

METHODS = ("dyspec", "chain", "kary", "ngram")
COMMON = ["--held-out", "6", "--max-tokens", "64", "--repeats", "9"]
BUDGETS = ["--budgets", "adaptive", "1", "2", "4", "5", "8", "16"]
BATCH_BUDGETS = ["--budgets", "adaptive", "1", "2", "4", "8"]
HEADLINE = re.compile(r"(<!-- headline -->\n).*?(<!-- end of headline -->)", re.S)


Slice = Callable[[Path, list[str]], None]
"""Measures into a folder; with options that every slice gets."""


def generate_slice(method: str) -> Slice:
    """Speeds of one method, with its plain runs."""

    def run(directory: Path, options: list[str]) -> None:
        argv = ["--methods", method, *COMMON, *BUDGETS, *options, "--json"]
        keep(generate.main, argv, directory / f"generate-{method}.json")

    return run


def batch_slice(directory: Path, options: list[str]) -> None:
    """DySpec at larger batch sizes."""
    argv = ["--methods", "dyspec", "--batch-sizes", "2", "4", "8", *BATCH_BUDGETS]
    keep(generate.main, [*argv, *COMMON, *options, "--json"], directory / "generate-batches.json")


def probe_slice(directory: Path, options: list[str]) -> None:
    """Predictions against runs."""
    keep(probe.main, [*COMMON, *options, "--json"], directory / "probe.json")


def kernels_slice(directory: Path, options: list[str]) -> None:
    """Every op at a 1.1B model's sizes."""
    argv = ["--shape", "1.1b", "--seconds", "0.3", *options, "--json"]
    keep(kernels.main, argv, directory / "kernels.json")


PLAIN_SPEED = "plain tokens/s"
OF_A_SLICE = ("commit", "date", "versions", "machine limits", PLAIN_SPEED)
"""Conditions in which the slices of a page may differ."""
LEAST_ACCEPTANCE = 1.05
"""Tokens per step of what is called speculating."""

SLICES: dict[str, Slice] = {
    **{method: generate_slice(method) for method in METHODS},
    "batches": batch_slice,
    "probe": probe_slice,
    "kernels": kernels_slice,
}


def keep(main: Callable[[list[str]], int], argv: list[str], path: Path) -> None:
    """Runs a benchmark in this process and keeps the JSON that it prints.

    Raises:
        ConfigError: it failed; what it said is on standard error.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main(argv)
    if code != 0:
        raise ConfigError.from_parts(f"{path.stem} to succeed", f"exit code {code}")
    document = json.loads(printed.getvalue())
    document["conditions"]["command"] = " ".join(["sdengine bench", path.stem.split("-")[0], *argv])
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def machine_name(device: str) -> str:
    """Folder name of this machine's page: the GPU, or processor, instruction set and threads."""
    if is_gpu(device):
        import torch

        words = f"{torch.cuda.get_device_name(device)} pair"
    else:
        from sdengine.kernels.cpu_library import load_cpu

        num_threads = choose_num_threads(None, read_environment())
        words = f"{processor()[0]} {kernels_isa(load_cpu())} {num_threads} threads"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def main(argv: list[str] | None = None) -> int:
    """Measures, renders and returns the exit code."""
    parser = LineParser(
        prog="python -m benchmarks.results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("slices", nargs="*", metavar="SLICE", help=f"of {', '.join(SLICES)}")
    parser.add_argument("--out", type=Path, help="folder of the page (by the machine's name)")
    add_device_option(parser)
    parser.add_argument("--render-only", action="store_true", help="measure nothing")
    parser.add_argument("--headline", action="store_true", help="update the repository's README")
    add_debug(parser)
    return run_alone(parser, run, argv)


def run(args: argparse.Namespace) -> int:
    """Measures the slices and writes the page."""
    unknown = [name for name in args.slices if name not in SLICES]
    if unknown:
        raise ConfigError.from_parts(f"slices among {', '.join(SLICES)}", ", ".join(unknown))
    require_matplotlib()
    choose_placement(EngineConfig("a pair", device=args.device), None)
    page = args.out or ROOT / "benchmarks" / "results" / machine_name(args.device)
    directory = page.resolve()
    if args.headline and not directory.is_relative_to(ROOT):
        raise ConfigError.from_parts(f"--headline of a page below {ROOT}", str(directory))
    make_directory("--out", directory)
    for name in [] if args.render_only else args.slices or SLICES:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        SLICES[name](directory, ["--device", args.device] if is_gpu(args.device) else [])
    render(directory)
    if args.headline:
        update_readme(directory, ROOT / "README.md")
    return 0


def render(directory: Path) -> None:
    """Writes README.md and the plots from the JSON files of a folder.

    Raises:
        ConfigError: there is no generate-*.json.
    """
    parts = ["# Results: " + directory.name, ""]
    merged = merged_speeds(directory)
    draw_all(merged, directory)
    parts += ["![speed over plain decoding by node budget](speedup.svg)", ""]
    parts += [*headline_table(merged["rows"]), "", to_markdown(merged).replace("# ", "## ", 1)]
    plots = ("acceptance", "reliability", "costs")
    parts += [f"![{name}]({name}.svg)" for name in plots if (directory / f"{name}.svg").is_file()]
    for name, section in (("probe", probe_section), ("kernels", kernels_section)):
        path = directory / f"{name}.json"
        if path.is_file():
            parts += ["", *section(json.loads(path.read_text(encoding="utf-8")))]
    (directory / "README.md").write_text("\n".join(parts) + "\n", encoding="utf-8")


def merged_speeds(directory: Path) -> dict[str, Any]:
    """One document from all generate slices; plain rows of the first that has the setting."""
    names = [name for name in SLICES if (directory / f"generate-{name}.json").is_file()]
    paths = [directory / f"generate-{name}.json" for name in names]
    if not paths:
        raise ConfigError.from_parts(f"generate-*.json in {directory}", "none", "measure a slice")
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    order = {method: i for i, method in enumerate((PLAIN, *METHODS))}
    rows, seen = [], set()
    for name, document in zip(names, documents):
        document["conditions"][PLAIN_SPEED] = plain_speeds(document["rows"])
        for row in document["rows"]:
            key = row["batch_size"], row["temperature"], row["method"], row["budget"]
            if key not in seen:
                seen.add(key)
                rows.append({**row, "slice": name})
    rows.sort(key=lambda r: (r["batch_size"], r["temperature"], order.get(r["method"], 9)))
    costs = [d["costs"] for d in documents if d["costs"]]
    conditions = dict(documents[0]["conditions"])
    conditions["command"] = "python -m benchmarks.results"
    for name, document in list(zip(names, documents))[1:]:  # each slice has a minute of its own
        for what in OF_A_SLICE:
            own = document["conditions"].get(what)
            if own and own != conditions.get(what):
                conditions[f"{what}, {name}"] = own
    return {"conditions": conditions, "rows": rows, "costs": costs[0] if costs else None}


def plain_speeds(rows: list[dict[str, Any]]) -> str:
    """What the ratios of a slice are ratios to."""
    return ", ".join(
        f"{row['tokens_per_s']:.0f} (T {row['temperature']:g}, batch {row['batch_size']})"
        for row in rows
        if row["method"] == PLAIN
    )


def headline_table(rows: list[dict[str, Any]]) -> list[str]:
    """DySpec and the best of what speculates at batch 1, one line a temperature.

    All of one run: another slice has a plain decoding of its own, measured in another minute. An
    adaptive budget that decoded plainly says nothing of its method: what its ratio differs from 1
    is noise.
    """
    lines = ["| T | plain tok/s | DySpec, adaptive | best of that run |", "|---|---|---|---|"]
    for temperature in sorted({row["temperature"] for row in rows}):
        here = [r for r in rows if r["temperature"] == temperature and r["batch_size"] == 1]
        plain = [r for r in here if r["method"] == PLAIN]
        chosen = [r for r in here if (r["method"], r["budget"]) == ("dyspec", "adaptive")]
        if not (plain and chosen):
            continue
        beside = [r for r in here if r["slice"] == chosen[0]["slice"]]
        speculating = [r for r in beside if r["mean_acceptance_length"] >= LEAST_ACCEPTANCE]
        best = max(speculating or plain, key=lambda r: r["ratio"])
        lines.append(
            f"| {temperature:g} | {plain[0]['tokens_per_s']:.0f} | {chosen[0]['ratio']:.2f}x | "
            f"{best['ratio']:.2f}x ({best['method']}, {best['budget']}) |"
        )
    return lines


def summary(conditions: dict[str, Any]) -> str:
    """Under which conditions speeds were measured, in a line; commits of single slices, too."""
    commits = [
        f"{name.removeprefix('commit, ')}: {value}"
        for name, value in conditions.items()
        if name.startswith("commit, ")
    ]
    words = [
        f"{len(conditions['prompts'])} held-out prompts, {conditions['new tokens']} tokens each",
        f"medians of {conditions['repeats']} repeats in turns",
        f"dtype {conditions['dtype']}",
        f"verifier {conditions['verifier']}",
        *(conditions[name] for name in ("machine limits", "date") if conditions.get(name)),
        f"commit {conditions['commit']}" + (f" ({', '.join(commits)})" if commits else ""),
    ]
    return ", ".join(words)


def origin(conditions: dict[str, Any]) -> str:
    """Where the figures of a section come from: command, limits, date, commit."""
    limits, date, commit = (conditions[name] for name in ("machine limits", "date", "commit"))
    return f"`{conditions['command']}`: {limits}, {date}, commit {commit}"


def probe_section(document: dict[str, Any]) -> list[str]:
    """Predicted against measured speeds."""
    lines = ["## Probe", "", origin(document["conditions"]), ""]
    lines += ["| batch | T | budget | predicted | measured | error | use |", "|---" * 7 + "|"]
    for v in document["verdicts"]:
        lines += [
            f"| {v['batch_size']} | {v['temperature']:g} | {check['budget']} | "
            f"{check['predicted']:.2f}x | {check['measured']:.2f}x | {check['error']:+.0%} | "
            f"`{v['use']}` |"
            for check in v["checks"]
        ]
    return lines


def kernels_section(document: dict[str, Any]) -> list[str]:
    """Every case of every op."""
    lines = ["## Kernels", "", origin(document["conditions"]), ""]
    columns = ("op", "kernel", "case", "median us", "p10", "p90", "torch us", "GB/s", "GFLOP/s")
    lines.append(f"| {' | '.join(columns)} | % of limit |")
    lines.append("|---" * (len(columns) + 1) + "|")
    for m in document["measurements"]:
        beside = f"{m['baseline']['median_us']:.1f}" if m["baseline"] else ""
        ours = [f"{m['kernel'][name]:.1f}" for name in ("median_us", "p10_us", "p90_us")]
        lines.append(
            f"| {m['op']} | {m['backend']} | {m['label']} | {' | '.join(ours)} | {beside} "
            f"| {m['gbps']:.1f} | {m['gflops']:.1f} | {m['percent_of_limit']:.0f} |"
        )
    return lines


def update_readme(directory: Path, readme: Path) -> None:
    """Puts the page's table and plot between the README's markers.

    Raises:
        ConfigError: the README has no markers.
    """
    text = readme.read_text(encoding="utf-8")
    if HEADLINE.search(text) is None:
        raise ConfigError.from_parts("<!-- headline --> markers in README.md", "none")
    merged = merged_speeds(directory)
    page = directory.relative_to(readme.parent).as_posix()
    conditions = merged["conditions"]
    lines = [
        f"The bundled pair on {where(conditions)} ([all figures]({page}/README.md), "
        "`python -m benchmarks.results --headline` makes them again on your machine); "
        f"{summary(conditions)}:",
        "",
        *headline_table(merged["rows"]),
        "",
        f"![speed over plain decoding by node budget]({page}/speedup.svg)",
    ]
    block = "\n".join(lines)
    readme.write_text(HEADLINE.sub(lambda m: f"{m[1]}{block}\n{m[2]}", text), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
