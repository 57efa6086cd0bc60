"""Model directories that no engine can run are refused on one line, at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdengine.cli.main import main
from sdengine.model.registry import BUNDLED_DIR, resolve_model

TARGET = BUNDLED_DIR / "python-completion" / "target"


def refusal(model: Path, capfd: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["generate", "x", "--model", str(model), *options]) == 2
    err = capfd.readouterr().err
    assert err.startswith("sdengine: expected ") and err.count("\n") == 1, err
    return err


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The bundled target, whose config.json a test may damage."""
    for file in TARGET.iterdir():
        if file.name != "config.json":
            (tmp_path / file.name).symlink_to(file)
    return tmp_path


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_hidden_layers", 100_000), ("max_position_embeddings", 10**9)],
)
def test_sizes_that_nobody_has_are_refused(key: str, value: int, model: Path, capfd) -> None:
    config = json.loads((TARGET / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, key: value}))
    assert f"{key} in config.json" in refusal(model, capfd)


def test_a_config_nested_without_end_is_refused(model: Path, capfd) -> None:
    (model / "config.json").write_text('{"a":' * 100_000)
    assert "readable JSON" in refusal(model, capfd)


def test_a_pair_says_which_directories_to_pass(tmp_path: Path, capfd) -> None:
    pair = tmp_path / "my-pair"
    pair.mkdir()
    for role in ("target", "draft"):
        (pair / role).symlink_to(TARGET.parent / role)
    err = refusal(pair, capfd)
    assert f"{pair / 'target'}" in err and f"{pair / 'draft'}" in err
    assert str(pair / "draft") in refusal(pair / "target", capfd, "--draft", str(pair))
    assert resolve_model(pair / "target", pair / "draft").draft == pair / "draft"


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_a_model_without_a_tokenizer_is_refused_before_it_is_read(
    command: str, model: Path, capfd
) -> None:
    """Token ids, which the engine would take, no command has."""
    for file in model.glob("*token*"):
        file.unlink()
    (model / "config.json").write_text((TARGET / "config.json").read_text())
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert main([command, *["x"] * (command == "generate"), "--model", str(model)]) == 2
    err = capfd.readouterr().err
    expected = f"expected {model / 'tokenizer.json'}, got no such file; download it with the model"
    assert err.startswith(f"sdengine: {expected}") and err.count("\n") == 1
