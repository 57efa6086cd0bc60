"""serve: what becomes of the options; tests/server tests the server itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdengine.cli import serve
from sdengine.cli.main import build_parser, main
from sdengine.core.config import EngineConfig
from sdengine.errors import ConfigError


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names under which a model would have been served."""
    names: list[str] = []
    monkeypatch.setattr(serve, "require_libraries", lambda: None)
    monkeypatch.setattr(
        "sdengine.server.run.serve", lambda settings, *engines: names.append(settings.model_name)
    )
    return names


def config(*options: str) -> EngineConfig:
    return serve.engine_config(build_parser().parse_args(["serve", *options]))


def test_as_many_sequences_as_an_engine_takes_can_be_asked_for() -> None:
    assert config("--max-num-seqs", "1000").max_num_batched_tokens == 1000
    assert config("--max-num-seqs", "4").max_num_batched_tokens == config().max_num_batched_tokens
    assert config("--max-model-len", "64").max_model_len == 64


def test_device_and_dtype_reach_the_engine() -> None:
    assert (config().device, config().dtype) == ("auto", "auto")
    asked = config("--device", "cuda:1", "--dtype", "float16")
    assert (asked.device, asked.dtype) == ("cuda:1", "float16")


def test_a_model_is_named_after_its_directory(
    served: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama").mkdir()
    monkeypatch.chdir(tmp_path / "llama")
    for options in (["--model", "."], ["--model", "../llama/"]):
        assert main(["serve", *options]) == 0
    assert main(["serve"]) == 0
    assert main(["serve", "--name", "mine"]) == 0
    assert served == ["llama"] * 2 + ["python-completion", "mine"]


@pytest.mark.parametrize(
    "option,value",
    [
        *(("--name", value) for value in ("", "  ")),
        *(("--timeout", value) for value in ("0", "-1", "nan", "inf")),
        *(("--drain-timeout", value) for value in ("0", "-1", "nan", "inf")),
    ],
)
def test_a_value_that_is_refused_is_told_by_its_option(
    served: list[str], capfd, option: str, value: str
) -> None:
    assert main(["serve", f"{option}={value}"]) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"sdengine: expected {option} to be a ") and err.count("\n") == 1
    assert not served


@pytest.mark.parametrize(
    "options", [["--compare", "--speculation", "off"], ["--speculation", "off", "--draft", "."]]
)
def test_options_that_contradict_each_other_are_refused(
    options: list[str], served: list[str], capfd
) -> None:
    assert main(["serve", *options]) == 2
    err = capfd.readouterr().err
    assert err.startswith("sdengine: ") and err.count("\n") == 1
    assert not served


def test_a_file_of_keys_may_have_comments(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("# of the team\n\nfirst#1\n   # old\n  second\n")
    assert serve.api_keys(file)[-2:] == ("first#1", "second")
    file.write_text("# none\n")
    with pytest.raises(ConfigError, match=f"an API key in {file}, got only blank lines and comm"):
        serve.api_keys(file)


def test_a_key_that_is_refused_is_told_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("fine\n\nschlüssel\n")
    with pytest.raises(ConfigError, match=f"expected line 3 of {file} to be ASCII") as caught:
        serve.api_keys(file)
    assert "schl" not in str(caught.value)
    monkeypatch.setenv("SDENGINE_API_KEY", " spaced")
    with pytest.raises(ConfigError, match="expected SDENGINE_API_KEY to be ASCII") as caught:
        serve.api_keys(None)
    assert "spaced" not in str(caught.value)


def test_a_file_of_keys_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_bytes(b"\xef\xbb\xbffirst\r\nsecond\n")
    assert serve.api_keys(file)[-2:] == ("first", "second")
