"""The one table of environment variables, and the one place where they are read.

At run time no other code reads a variable of the package's own, nor NO_COLOR. An argument given in
code always wins over a variable. (setup.py reads its own, which are listed here too; variables of
others, such as Triton's TRITON_INTERPRET, are read where they matter.)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sdengine.core.config import MAX_THREADS, checked_backend
from sdengine.errors import ConfigError

__all__ = [
    "SECRETS",
    "VARIABLES",
    "Environment",
    "choose_num_threads",
    "read_environment",
    "usable_cores",
]

VARIABLES: dict[str, str] = {
    "SDENGINE_BACKEND": "backend of all ops, when backend is not given",
    "SDENGINE_ISA": "CPU instructions: portable, avx2, avx512, avx512_bf16; for the C++ kernels",
    "SDENGINE_NUM_THREADS": "CPU threads, when num_threads is not given",
    "SDENGINE_CACHE_DIR": "where measured costs are kept; default ~/.cache/sdengine",
    "SDENGINE_BUNDLED_DIR": "where bundled model pairs are looked for; default inside the package",
    "SDENGINE_API_KEY": "a key that clients of `sdengine serve` must send",
    "SDENGINE_BUILD_CUDA": "1 builds the CUDA library without a GPU too, 0 never; read by setup.py",
    "SDENGINE_REQUIRE_CPU_EXTENSION": "1 lets an installation fail without it; read by setup.py",
    "NO_COLOR": "when set to anything, the command line prints no colours",
}

SECRETS = frozenset({"SDENGINE_API_KEY"})
"""Variables whose values are shown to nobody."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What the environment asks for; None where it says nothing.

    Args:
        backend: of all ops.
        num_threads: CPU threads.
        cache_dir: directory for things that can be computed again.
        bundled_dir: directory of bundled pairs.
        no_color: whether colours are unwanted.
        api_key: a key that the server's clients must send.
    """

    backend: str | None
    num_threads: int | None
    cache_dir: Path
    bundled_dir: Path | None
    no_color: bool
    api_key: str | None = field(default=None, repr=False)


def read_environment(environ: Mapping[str, str] | None = None) -> Environment:
    """Read and validate every variable of the table.

    Args:
        environ: the environment; None for the process's own.

    Raises:
        ConfigError: a variable has an unusable value, or a variable beginning with SDENGINE_ is not
            in the table.
    """
    env = os.environ if environ is None else environ
    unknown = sorted(name for name in env if name.startswith("SDENGINE_") and name not in VARIABLES)
    if unknown:
        raise ConfigError.from_parts(
            f"environment variables among {', '.join(VARIABLES)}", ", ".join(unknown), "unset it"
        )
    cache_dir, bundled_dir = env.get("SDENGINE_CACHE_DIR"), env.get("SDENGINE_BUNDLED_DIR")
    return Environment(
        backend=checked_backend(
            "SDENGINE_BACKEND", env.get("SDENGINE_BACKEND", "").strip() or None
        ),
        num_threads=_num_threads(env.get("SDENGINE_NUM_THREADS", "")),
        cache_dir=_directory("SDENGINE_CACHE_DIR", cache_dir or "~/.cache/sdengine"),
        bundled_dir=_directory("SDENGINE_BUNDLED_DIR", bundled_dir) if bundled_dir else None,
        no_color=bool(env.get("NO_COLOR")),
        api_key=env.get("SDENGINE_API_KEY") or None,
    )


def choose_num_threads(num_threads: int | None, environment: Environment) -> int:
    """CPU threads of an engine: those it was given, else the environment's, else a thread for every
    usable core."""
    return num_threads or environment.num_threads or usable_cores()


def usable_cores() -> int:
    """Logical cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _directory(name: str, text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~ of a user without a home
        raise ConfigError.from_parts(
            f"{name} to be a directory", f"{text!r}: {error}", "set it to an absolute path"
        ) from None


def _num_threads(text: str) -> int | None:
    if not text.strip():
        return None
    if not text.strip().isdecimal() or not 1 <= int(text) <= MAX_THREADS:
        raise ConfigError.from_parts(
            f"SDENGINE_NUM_THREADS to be an integer from 1 to {MAX_THREADS}", repr(text)
        )
    return int(text)
