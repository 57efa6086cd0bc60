"""`sdengine train pair`: trains the bundled pair; thin, the work is in `sdengine.train.pair`."""

from __future__ import annotations

import argparse

from sdengine.cli.options import LineParser, add_passed_on_options

__all__ = ["HELP", "add_arguments", "run"]

HELP = "train models from scratch"
PAIR_HELP = "train the bundled pair python-completion from Python's own standard library"
# 1800 steps of 4.7 s, and 10000 of 0.5 s, or 2.3 s while the target reads each text for the first
# time (docs/log.md, sixth and seventh run of the bundled pair).
DURATION = (
    "the defaults take four to five hours on two cores; after a stop the same command goes on"
)
PROGRESS = (
    "progress is a bar on a terminal; everywhere it is in pair.jsonl and draft.jsonl of the work "
    "directory, a line for ten steps"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments; those of `pair` are the training code's own."""
    parser.add_argument("recipe", choices=["pair"], help=f"pair: {PAIR_HELP}")
    add_passed_on_options(parser, "options of the recipe; sdengine train pair --help lists them")


def run(args: argparse.Namespace) -> int:
    """Entry of the command.

    Raises:
        ConfigError, CheckpointError: as `sdengine.train.pair.run`.
    """
    from sdengine.train import options, pair

    parser = LineParser(
        prog="sdengine train pair", description=f"{PAIR_HELP}; {DURATION}; {PROGRESS}"
    )
    options.add_arguments(parser)
    return pair.run(parser.parse_args(args.options))
