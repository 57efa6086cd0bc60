"""Plain against speculative decoding at real sizes: the bundled pair, enlarged; nothing is fetched.

    python -m benchmarks.upscaled_pair                          # a 1.1B target, a 68M draft
    python -m benchmarks.upscaled_pair --check                  # first: does it say the same?
    python -m benchmarks.upscaled_pair -- --budgets adaptive 8  # options of `bench generate`

The pair accepts what the bundled pair accepts, and a step costs what a step of such sizes costs (a
TinyLlama with a llama-68m as its draft). It is made once, into the cache directory, and measured by
`sdengine bench generate`, whose options follow `--`. All budgets of a method are open at once, some
2.4 GB each of a 1.1B pair; with `--apart` among the options one at a time.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from time import perf_counter

from benchmarks import generate
from benchmarks.held_out import held_out_prompts
from benchmarks.upscale import SHAPES, Shape, enlarge, resolve_shape
from benchmarks.upscale.agreement import compare_logits, compare_text
from benchmarks.upscale.enlarge import STORED_DTYPES
from sdengine.cli.main import run_alone
from sdengine.cli.options import BUNDLED_MODEL, LineParser, add_debug, integer
from sdengine.core.env import read_environment
from sdengine.errors import ConfigError
from sdengine.model.registry import ModelPaths, resolve_model

PROGRAM = "python -m benchmarks.upscaled_pair"
FORMAT = 1  # of the enlargement: raised when the same arguments give other weights
CHECKED_TOKENS = 256
CHECKED_PROMPTS = 20
TOLERANCE = 0.1


def build_parser() -> LineParser:
    """The command line."""
    parser = LineParser(
        prog=PROGRAM,
        description=(__doc__ or "").partition("\n\n")[0],
    )
    add_pair_options(parser)
    parser.add_argument(
        "--check", action="store_true", help="compare logits and greedy text with the small pair's"
    )
    parser.add_argument(
        "--check-tokens", type=integer, default=CHECKED_TOKENS, metavar="N", help="(%(default)s)"
    )
    parser.add_argument(
        "--check-prompts",
        type=integer,
        default=CHECKED_PROMPTS,
        metavar="N",
        help="held-out prompts (%(default)s)",
    )
    parser.add_argument("--make-only", action="store_true", help="measure nothing")
    add_debug(parser)
    parser.add_argument("options", nargs="*", help="of sdengine bench generate, after --")
    return parser


def add_pair_options(parser: argparse.ArgumentParser) -> None:
    """Which pair is enlarged to what, and where it is kept."""
    names = ", ".join(SHAPES)
    parser.add_argument("--pair", default=BUNDLED_MODEL, help="the small pair (%(default)s)")
    parser.add_argument(
        "--target-shape", default="1.1b", help=f"{names} or a config.json (%(default)s)"
    )
    parser.add_argument("--draft-shape", default="68m", help="likewise (%(default)s)")
    parser.add_argument(
        "--stored-dtype", choices=STORED_DTYPES, default="bfloat16", help="(%(default)s)"
    )
    parser.add_argument(
        "--enlarge-seed", type=integer, default=0, metavar="S", help="(%(default)s)"
    )
    parser.add_argument(
        "--enlarge-device", default="cpu", help="that computes weights (%(default)s)"
    )
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="(the user's cache)")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_alone(build_parser(), run, argv)


def run(args: argparse.Namespace) -> int:
    """Makes the pair, checks it where that is asked for, measures it."""
    large = upscaled_pair(args)
    if args.check and not check(resolve_model(args.pair), large, args):
        return 1
    if args.make_only:
        return 0
    pair = ["--model", str(large.target), "--draft", str(large.draft), "--dtype", "bfloat16"]
    return generate.main([*pair, *args.options], PROGRAM)


def upscaled_pair(args: argparse.Namespace) -> ModelPaths:
    """The enlarged pair, made now unless the cache has it.

    Args:
        args: with the options of `add_pair_options`.

    Raises:
        ConfigError: the pair has no draft, or a shape does not hold its model.
    """
    small = resolve_model(args.pair)
    if small.draft is None:
        raise ConfigError.from_parts("a pair with a draft of its own", args.pair)
    return ModelPaths(
        _cached(small.target, args.target_shape, args),
        _cached(small.draft, args.draft_shape, args),
    )


def _cached(source: Path, shape_name: str, args: argparse.Namespace) -> Path:
    shape = resolve_shape(shape_name)
    root = args.cache_dir or read_environment().cache_dir
    target = root / "upscaled" / f"{source.name}-{_key(source, shape, args)}"
    if not target.is_dir():
        started = perf_counter()
        enlarge(
            source,
            target,
            shape,
            seed=args.enlarge_seed,
            dtype=args.stored_dtype,
            device=args.enlarge_device,
        )
        size = sum(file.stat().st_size for file in target.iterdir())
        seconds = perf_counter() - started
        print(f"{target}: {size / 1e9:.2f} GB in {seconds:.0f} s", file=sys.stderr)
    return target


def _key(source: Path, shape: Shape, args: argparse.Namespace) -> str:
    """Hash of everything that the weights depend on."""
    kind = args.enlarge_device.partition(":")[0]  # random numbers differ between kinds of device
    parts = (FORMAT, shape, args.stored_dtype, args.enlarge_seed, kind)
    digest = hashlib.sha256(repr(parts).encode())
    for file in sorted(source.iterdir()):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def check(small: ModelPaths, large: ModelPaths, args: argparse.Namespace) -> bool:
    """Prints how far the pairs agree; False where the large one says something else.

    They are compared in the dtype in which the large weights are stored, because that is what they
    were rounded to: logits within twice the rounding error of plain torch on the small model, the
    same text in float32, acceptance lengths within a tenth in 16 bits, where ties are broken by
    rounding.
    """
    texts = [prompt.text for prompt in held_out_prompts(args.check_prompts)]
    dtype = "float32" if args.stored_dtype == "float32" else "bfloat16"
    logits = compare_logits(small.target, large.target, texts[:1], dtype)
    ratio = logits.large_error / logits.small_error
    print(
        f"{dtype}: logits differ from the exact small model's by {logits.large_error:.2e} rms, "
        f"{ratio:.2f} of what plain torch loses on the small model; surplus vocabulary "
        f"{logits.surplus_distance:.0f} below"
    )
    text = compare_text(small, large, texts, dtype, args.check_tokens)
    print(
        f"{dtype}: {text.num_equal} of {text.num_texts} greedy texts of {args.check_tokens} "
        f"tokens equal; acceptance length {text.small_length:.3f} small, "
        f"{text.large_length:.3f} large"
    )
    is_close = abs(text.large_length - text.small_length) <= TOLERANCE * text.small_length
    is_text_same = text.num_equal == text.num_texts if dtype == "float32" else is_close
    return ratio <= 2 and logits.surplus_distance > 0 and is_text_same


if __name__ == "__main__":
    sys.exit(main())
