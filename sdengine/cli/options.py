"""Command-line options that several commands share, and how errors of a command line read.

Nothing here imports torch: wrong arguments are answered before a model or a tensor library is
loaded.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from sdengine.cli import exit_codes
from sdengine.core.config import DTYPES, METHODS_WITHOUT_DRAFT_MODEL, SPECULATION_WORDS
from sdengine.core.env import read_environment
from sdengine.core.sampling_params import SamplingParams
from sdengine.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from sdengine.llm import LLM
    from sdengine.model.registry import ModelPaths

__all__ = [
    "BUNDLED_MODEL",
    "DEBUG",
    "DEFAULT_MAX_TOKENS",
    "DEFAULT_THREADS",
    "SHAPING_OPTIONS",
    "WITHOUT_DRAFT",
    "LineParser",
    "add_debug",
    "add_device_option",
    "add_model_options",
    "add_passed_on_options",
    "add_sampling_options",
    "add_thread_option",
    "fresh_seed",
    "integer",
    "model_paths",
    "number",
    "open_llm",
    "require_tokenizer",
    "sampling_params",
]

BUNDLED_MODEL = "python-completion"
DEBUG = "--debug"
WITHOUT_DRAFT = ("off", *METHODS_WITHOUT_DRAFT_MODEL)
"""Words of --speculation for which a draft model does nothing."""
DEFAULT_MAX_TOKENS = 128
DEFAULT_THREADS = "SDENGINE_NUM_THREADS, or all cores"
"""What help says of an engine's threads."""


class LineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line on standard error."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        for kind, own in ((int, integer), (float, number)):  # of packages below the command line
            self.register("type", kind, own)

    def error(self, message: str) -> NoReturn:
        line = " ".join(message.split())
        self.exit(exit_codes.USAGE, f"sdengine: {line}; see {self.prog} --help\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """argparse takes it in silence when help or version cannot be written."""
        if file is sys.stdout:
            file.write(message)
        else:
            super()._print_message(message, file)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As ever, but the parser of a command (its default `parser`) refuses what it does not
        know, so that the error names the help to look into."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            getattr(found, "parser", self).error(f"unrecognized arguments: {' '.join(unknown)}")
        return found


def add_debug(parser: argparse.ArgumentParser) -> None:
    """The option that shows an error's traceback."""
    parser.add_argument(DEBUG, action="store_true", help="show the traceback of an error")


def integer(text: str) -> int:
    """An integer option."""
    return _converted(text, int, "an integer")


def number(text: str) -> float:
    """A number option."""
    return _converted(text, float, "a number")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """--model, --draft, --device, --dtype, --speculation, --max-model-len."""
    parser.add_argument(
        "--model",
        default=BUNDLED_MODEL,
        metavar="DIR",
        help="model directory in Hugging Face format, or the name of a bundled pair (%(default)s)",
    )
    parser.add_argument(
        "--draft",
        metavar="DIR",
        help="draft model directory, or a bundled pair for its draft (that of --model, or none)",
    )
    add_device_option(parser)
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="of weights and KV cache: auto is the checkpoint's, or bfloat16 on "
        "CPUs that have it (%(default)s)",
    )
    parser.add_argument(
        "--speculation",
        choices=SPECULATION_WORDS,
        default="auto",
        help="how to speculate: auto is dyspec with a draft model, ngram without (%(default)s)",
    )
    parser.add_argument(
        "--max-model-len",
        type=integer,
        metavar="N",
        help="most tokens of a sequence, its prompt included (the checkpoint's)",
    )


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """--device, for commands that open an engine."""
    parser.add_argument(
        "--device", default="auto", metavar="X", help="cpu, cuda or cuda:0; auto is the CPU (auto)"
    )


SHAPING_OPTIONS: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "temperature": (number, "T", "0 takes the most likely token"),
    "top_p": (number, "P", "keep the most likely tokens that make up a probability of P"),
    "top_k": (integer, "K", "keep the K most likely tokens; 0 keeps all"),
    "min_p": (number, "P", "keep tokens at least P times as likely as the most likely one"),
    "presence_penalty": (number, "X", "taken from the logit of each token generated before"),
    "frequency_penalty": (number, "X", "the same for every time that it was generated"),
    "repetition_penalty": (
        number,
        "X",
        "divides (negative ones: multiplies) the logits of tokens of prompt and text",
    ),
}
"""Fields of SamplingParams that shape the law of a token: type, metavar, help of their option."""


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """--max-tokens, --seed, --stop, and one for each of SHAPING_OPTIONS."""
    group = parser.add_argument_group(
        "sampling", "defaults are the checkpoint's (generation_config.json) unless said otherwise"
    )
    group.add_argument(
        "--max-tokens",
        type=integer,
        default=DEFAULT_MAX_TOKENS,
        metavar="N",
        help="most tokens to generate (%(default)s)",
    )
    group.add_argument(
        "--seed",
        type=integer,
        metavar="S",
        help="the same seed gives the same text (a fresh one, printed afterwards)",
    )
    group.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="end the text before this; may be given several times",
    )
    for name, (kind, metavar, text) in SHAPING_OPTIONS.items():
        option = f"--{name.replace('_', '-')}"
        group.add_argument(option, type=kind, metavar=metavar, help=text)


def add_thread_option(parser: argparse.ArgumentParser) -> None:
    """--num-threads, for commands of `open_llm`."""
    parser.add_argument(
        "--num-threads",
        type=integer,
        metavar="N",
        help=f"CPU threads ({DEFAULT_THREADS})",
    )


def add_passed_on_options(parser: argparse.ArgumentParser, text: str) -> None:
    """`options`: whatever follows, for a parser that comes later.

    Args:
        parser: with the argument that says which one.
        text: the help.
    """
    rest = parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help=text)
    rest.required = False  # before Python 3.12 an error listed it among what is missing


def sampling_params(
    args: argparse.Namespace, defaults: SamplingParams | None = None
) -> SamplingParams:
    """Parameters of a request: the command line's over the checkpoint's.

    Args:
        args: with the options of `add_sampling_options`.
        defaults: the checkpoint's; None checks the command line alone, before anything is loaded.

    Raises:
        RequestError: a value is out of range.
    """
    names = ("max_tokens", "seed", "stop", *SHAPING_OPTIONS)
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    defaults = defaults or SamplingParams()
    given["min_tokens"] = min(defaults.min_tokens, args.max_tokens)
    return replace(defaults, **given)


def fresh_seed() -> int:
    """A seed nobody asked for, short enough to be typed again."""
    return int.from_bytes(os.urandom(4), "little") >> 1


def model_paths(args: argparse.Namespace) -> ModelPaths:
    """Directories that --model and --draft name.

    Raises:
        ConfigError: a draft for a kind of speculation that has no use for it.
        CheckpointError: nothing of that name.
    """
    if args.draft is not None and args.speculation in WITHOUT_DRAFT:
        raise ConfigError.from_parts(
            f"no --draft with --speculation {args.speculation}",
            args.draft,
            "leave one of them out",
        )
    from sdengine.model.registry import resolve_model

    return resolve_model(args.model, args.draft, bundled_dir=read_environment().bundled_dir)


def open_llm(args: argparse.Namespace, speculation: str | None = None) -> LLM:
    """Loads the model that the options of `add_model_options` name, for one request at a time.

    Args:
        args: the parsed command line, `add_thread_option` included.
        speculation: overrides --speculation.

    Raises:
        CheckpointError: no tokenizer.
        ConfigError, CheckpointError, BackendUnavailable, CacheFull: as `LLM`.
    """
    require_tokenizer(model_paths(args).target)  # a misspelt name is answered before torch comes
    from sdengine.llm import LLM

    return LLM(
        args.model,
        args.draft,
        device=args.device,
        dtype=args.dtype,
        speculation=speculation or args.speculation,
        max_num_seqs=1,
        max_model_len=args.max_model_len,
        num_threads=args.num_threads,
    )


def require_tokenizer(model: Path) -> None:
    """Refuses a model that an engine would run on token ids alone, before its weights are read.

    Raises:
        CheckpointError: there is no file of a tokenizer.
    """
    from sdengine.model.registry import has_tokenizer

    if (model / "config.json").is_file() and not has_tokenizer(model):
        raise CheckpointError.from_parts(
            f"{model / 'tokenizer.json'}",
            "no such file",
            "download it with the model; only in Python prompts can be token ids",
        )


def _converted(text: str, convert: Callable[[str], Any], expected: str) -> Any:
    try:
        return convert(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}") from None
