"""Options of `sdengine train pair`, and what is refused before hours of training begin."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

import torch

from sdengine.errors import ConfigError
from sdengine.train.directories import make_directory
from sdengine.train.distill import PRECISIONS

__all__ = ["add_arguments", "check_arguments", "make_directories"]

SEED_END = 2**62
"""Samples have seeds of their own above it, which are signed 64-bit integers."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `sdengine train pair`."""
    for name, kind, default, text in (
        ("--run-dir", Path, Path("runs/pair"), "work directory; a stopped run goes on from there"),
        (
            "--steps",
            int,
            1800,
            "steps of target and draft; 0 trains the draft alone, with --start-from",
        ),
        ("--cooldown-steps", int, 1100, "the last of these steps"),
        ("--draft-steps", int, 10000, "steps of the draft alone"),
        ("--samples", int, 1536, "texts sampled from the target"),
        (
            "--rate",
            float,
            1.0,
            "factor on the peak learning rates; below 1 for a start from a trained pair",
        ),
        (
            "--dropout",
            float,
            0.0,
            "share left out of what the target's layers add, against learning the corpus by heart"
            " in many passes",
        ),
        ("--seed", int, 0, "of weights, batches and samples"),
        ("--device", str, "cpu", "cpu, cuda or cuda:N"),
    ):
        parser.add_argument(
            name, type=kind, default=default, metavar="X", help=f"{text} (%(default)s)"
        )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory of the finished pair: DIR/target and DIR/draft",
    )
    parser.add_argument(
        "--start-from",
        type=Path,
        metavar="PAIR",
        help="begin with tokenizer and weights of an exported pair (an earlier --out)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="of the matrix products; bf16 is faster where the processor multiplies it, which"
        " CPUs with avx512_bf16 or AMX and GPUs do (%(default)s)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of torch (all cores)")
    parser.add_argument(
        "--export-only",
        action="store_true",
        help="export what the run directory holds now, finished or not, and train nothing",
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse settings that could not work.

    Raises:
        ConfigError: for a number out of range, a device that is not there, or no matplotlib.
    """
    if args.steps < 0 or (args.steps == 0 and args.start_from is None):
        raise ConfigError.from_parts(
            "--steps of at least 1, or 0 (the draft alone) with --start-from", str(args.steps)
        )
    counts = {
        "--cooldown-steps": args.cooldown_steps,
        "--draft-steps": args.draft_steps,
        "--samples": args.samples,
        "--threads": 1 if args.threads is None else args.threads,
    }
    for name, value in counts.items():
        if value < 1:
            raise ConfigError.from_parts(f"{name} of at least 1", str(value))
    if not 0 <= args.seed < SEED_END:
        raise ConfigError.from_parts(f"--seed of at least 0 and below {SEED_END}", str(args.seed))
    if not 0.0 < args.rate <= 2.0:
        raise ConfigError.from_parts("--rate above 0 and at most 2", str(args.rate))
    if not 0.0 <= args.dropout < 1.0:
        raise ConfigError.from_parts("--dropout of at least 0 and below 1", str(args.dropout))
    if args.device != "cpu" and not torch.cuda.is_available():
        raise ConfigError.from_parts("--device cpu on a machine without a GPU", args.device)
    if find_spec("matplotlib") is None:
        raise ConfigError.from_parts(
            "matplotlib for the loss curves",
            "an environment without it",
            "pip install 'sdengine[train]' has it",
        )


def make_directories(args: argparse.Namespace) -> None:
    """Make the run's directory and the pair's.

    Raises:
        ConfigError: for one that cannot be written to.
    """
    make_directory("--out", args.out)
    make_directory("--run-dir", args.run_dir)
