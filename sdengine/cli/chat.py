"""`sdengine chat`: a conversation in the terminal, with the checkpoint's own chat template."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from sdengine.cli import exit_codes
from sdengine.cli.generate import statistics_line
from sdengine.cli.main import report
from sdengine.cli.measure import run_request
from sdengine.cli.options import (
    add_model_options,
    add_sampling_options,
    add_thread_option,
    fresh_seed,
    model_paths,
    open_llm,
    sampling_params,
)
from sdengine.cli.stream_view import StreamView
from sdengine.cli.terminal import is_terminal, palette_for, write
from sdengine.core.sampling_params import SamplingParams
from sdengine.errors import RequestError

if TYPE_CHECKING:
    from sdengine.llm import LLM, StreamDelta

__all__ = ["HELP", "add_arguments", "run"]

HELP = "talk to a model that has a chat template"
RESET, EXIT = "/reset", "/exit"
INTRODUCTION = (
    f"{RESET} forgets the conversation, Ctrl-C ends an answer, {EXIT} or the end of input leaves"
)
DROPPED = f"this message is left out, {RESET} forgets the conversation"
ENDED = "ended; the conversation keeps what was said"

Message = dict[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add_model_options(parser)
    add_sampling_options(parser)
    add_thread_option(parser)


def run(args: argparse.Namespace) -> int:
    """Entry of the command: one line of input is one message.

    Raises:
        RequestError: the checkpoint has no chat template, or as `converse`.
        ConfigError, CheckpointError, CacheFull: unusable input.
    """
    args.seed = fresh_seed() if args.seed is None else args.seed
    sampling_params(args)
    require_chat_template(args)
    llm = open_llm(args)
    params = sampling_params(args, llm.engine.default_params)
    if hasattr(sys.stdin, "reconfigure"):  # `read_line` refuses stray bytes, in every locale alike
        sys.stdin.reconfigure(errors="surrogateescape")
    if is_terminal(sys.stdin):
        tell(INTRODUCTION)
    converse(llm, params, args.debug)
    return 0


def converse(llm: LLM, params: SamplingParams, debug: bool) -> None:
    """Answers message after message; on a terminal one that cannot be answered is only left out.

    Args:
        llm: with nothing else to do.
        params: with the session's seed.
        debug: show the traceback of an error that is told.

    Raises:
        RequestError: off a terminal, as `read_line` and `answer`.
    """
    messages: list[Message] = []
    while True:
        try:
            line = read_line()
            if line is None:
                return
            if line.strip() == RESET:
                messages = []
            elif line.strip():
                messages = answer(llm, [*messages, {"role": "user", "content": line}], params)
        except RequestError as error:
            if not is_terminal(sys.stdin):
                raise
            report(f"{error}; {DROPPED}", exit_codes.USAGE, debug)


def answer(llm: LLM, messages: list[Message], params: SamplingParams) -> list[Message]:
    """Streams the answer to a conversation and returns the conversation with it. On a terminal
    Ctrl-C ends the answer, which stays as far as it came.

    Raises:
        RequestError: the conversation does not fit into the context, or the template refuses it.
        KeyboardInterrupt: off a terminal.
    """
    assert params.seed is not None
    # Answers must not repeat each other's noise: every turn has a seed of its own, made from the
    # session's. That one is printed, since it is what repeats the session.
    own = replace(params, seed=(params.seed + len(messages)) % 2**63)
    view = StreamView(llm)
    said: list[str] = []

    def show(delta: StreamDelta) -> None:
        said.append(delta.text)
        view.show(delta)

    try:
        result = run_request(llm, llm.render_chat(messages), own, show)
    except KeyboardInterrupt:
        if not is_terminal(sys.stdin):
            raise
        view.finish()
        tell(ENDED)
    else:
        view.finish()
        print(statistics_line(result, params), file=sys.stderr)
    return [*messages, {"role": "assistant", "content": "".join(said)}]


def tell(text: str) -> None:
    """A faint line for who sits at the terminal."""
    print(palette_for(sys.stderr).faint(text), file=sys.stderr)


def require_chat_template(args: argparse.Namespace) -> None:
    """Refuses a model without a chat template before its weights are read.

    Raises:
        RequestError: there is none.
        CheckpointError: no such model, or its template is damaged.
    """
    from sdengine.model.chat_template import load_chat_template

    if load_chat_template(model_paths(args).target) is None:
        raise RequestError.from_parts(
            "a model with a chat template",
            f"{args.model}, which has none",
            "pass --model with an instruction-tuned model, or use sdengine generate",
        )


def read_line() -> str | None:
    """The next message; None at the end of input or at /exit.

    Raises:
        RequestError: it is not UTF-8.
    """
    if is_terminal(sys.stdin):
        write("> ", sys.stderr)
    line = sys.stdin.readline()
    try:  # a locale without an encoding escapes every byte beyond ASCII
        line = line.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError as error:
        raise RequestError.from_parts("messages in UTF-8", str(error)) from None
    if not line or line.strip() == EXIT:
        return None
    return line.removesuffix("\n").removesuffix("\r")
