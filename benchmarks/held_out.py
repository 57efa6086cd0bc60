"""Prompts from files that the bundled pair was not trained on: held-out files of the running
interpreter's standard library.

The pair's manifest says which files were held out. A prompt is the beginning of a top-level
statement; which files and places are taken is a function of the library and the seed alone.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random

from sdengine.cli.prompts import Prompt
from sdengine.errors import RequestError

__all__ = ["held_out_prompts"]

OPENER = re.compile(r"^(?:async def |def |class )", re.M)
PROMPT_CHARACTERS = 320
MIN_STATEMENT_CHARACTERS = 480  # longer than the prompt: something is left to write


def held_out_prompts(
    count: int, seed: int = 0, *, exclude: set[str] = frozenset(), manifest: Path | None = None
) -> list[Prompt]:
    """Beginnings of functions and classes from held-out files.

    Args:
        count: how many.
        seed: which.
        exclude: titles that must not be taken (prompts of another set).
        manifest: MANIFEST.json of a pair; None for the bundled one's.

    Raises:
        RequestError: none are asked for, this interpreter's library has fewer of them, or the
            manifest does not say what was held out.
    """
    if count < 1:
        raise RequestError.from_parts("at least 1 held-out prompt", str(count))
    found = [p for p in _statements(manifest or _bundled_manifest()) if p.title not in exclude]
    if len(found) < count:
        raise RequestError.from_parts(
            f"{count} held-out statements in this interpreter's standard library",
            str(len(found)),
            "ask for fewer, or give files (--prompt-file)",
        )
    return Random(seed).sample(found, count)


def _bundled_manifest() -> Path:
    from sdengine.core.env import read_environment
    from sdengine.llm import BUNDLED
    from sdengine.model.registry import BUNDLED_DIR

    return (read_environment().bundled_dir or BUNDLED_DIR) / BUNDLED / "MANIFEST.json"


def _statements(manifest: Path) -> list[Prompt]:
    from sdengine.train.data import standard_library_files

    try:
        names = json.loads(manifest.read_text(encoding="utf-8"))["corpus"]["held_out_files"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RequestError.from_parts(
            f"the held-out files of a pair in {manifest}", f"{type(error).__name__}: {error}"
        ) from None
    held_out = set(names)
    prompts = []
    for file in standard_library_files():
        if file.path not in held_out:
            continue
        starts = [m.start() for m in OPENER.finditer(file.text)]
        for start, end in zip(starts, [*starts[1:], len(file.text)]):
            if end - start >= MIN_STATEMENT_CHARACTERS:
                line = file.text.count("\n", 0, start) + 1
                text = file.text[start : start + PROMPT_CHARACTERS]
                prompts.append(Prompt(f"{file.path}:{line}", text))
    return prompts
