"""The table of environment variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdengine.core.env import Environment, choose_num_threads, read_environment, usable_cores
from sdengine.errors import ConfigError


def test_an_empty_environment_asks_for_nothing() -> None:
    expected = Environment(None, None, Path("~/.cache/sdengine").expanduser(), None, False)
    assert read_environment({}) == expected
    blank = {"SDENGINE_BACKEND": " ", "SDENGINE_NUM_THREADS": "", "NO_COLOR": ""}
    assert read_environment(blank) == expected


def test_values_are_read() -> None:
    env = read_environment(
        {
            "SDENGINE_BACKEND": " reference ",
            "SDENGINE_NUM_THREADS": "3",
            "SDENGINE_CACHE_DIR": "/c",
            "SDENGINE_BUNDLED_DIR": "/b",
            "NO_COLOR": "1",
            "SDENGINE_ISA": "avx2",
            "SDENGINE_API_KEY": "secret",
            "UNRELATED": "x",
        }
    )
    assert env == Environment("reference", 3, Path("/c"), Path("/b"), True, "secret")
    assert "secret" not in repr(env)
    assert read_environment({"SDENGINE_BACKEND": "cpu"}).backend == "cpu"


def test_threads_are_given_or_the_environments_or_one_a_core() -> None:
    none, three = read_environment({}), read_environment({"SDENGINE_NUM_THREADS": "3"})
    chosen = [choose_num_threads(n, env) for env in (none, three) for n in (None, 2)]
    assert chosen == [usable_cores(), 2, 3, 2]


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"SDENGINE_BACKEND": "fast"}, "SDENGINE_BACKEND to be one of.*'fast'"),
        ({"SDENGINE_BACKEND": "linear=cpu"}, "SDENGINE_BACKEND to be one of.*'linear=cpu'"),
        ({"SDENGINE_NUM_THREADS": "0"}, "SDENGINE_NUM_THREADS"),
        ({"SDENGINE_NUM_THREADS": "two"}, "SDENGINE_NUM_THREADS"),
        ({"SDENGINE_CACHE_DIR": "~nobody-at-all/x"}, "SDENGINE_CACHE_DIR.*absolute path"),
        ({"SDENGINE_BUNDLED_DIR": "~nobody-at-all/x"}, "SDENGINE_BUNDLED_DIR.*absolute path"),
        ({"SDENGINE_THREADS": "2"}, "among SDENGINE_BACKEND.*got SDENGINE_THREADS; unset it"),
    ],
)
def test_bad_values_are_refused_and_named(environ, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_environment(environ)
