"""Which directories a model argument means."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdengine.errors import CheckpointError
from sdengine.model.registry import ModelPaths, bundled_pairs, resolve_model


@pytest.fixture
def bundled(tmp_path: Path) -> Path:
    root = tmp_path / "bundled"
    for part in ("target", "draft"):
        (root / "python-completion" / part).mkdir(parents=True)
        (root / "python-completion" / part / "config.json").write_text("{}")
    (root / "unfinished").mkdir()
    return root


def test_a_bundled_pair_brings_its_draft(bundled: Path) -> None:
    pair = bundled / "python-completion"
    assert bundled_pairs(bundled) == ["python-completion"]
    paths = resolve_model("python-completion", bundled_dir=bundled)
    assert paths == ModelPaths(pair / "target", pair / "draft")
    other = resolve_model("python-completion", pair / "target", bundled_dir=bundled)
    assert other.draft == pair / "target"


def test_a_draft_may_be_a_bundled_pair_s(bundled: Path, tmp_path: Path) -> None:
    draft = bundled / "python-completion" / "draft"
    for model in ("python-completion", tmp_path):
        assert resolve_model(model, "python-completion", bundled_dir=bundled).draft == draft
    (bundled / "alone" / "target").mkdir(parents=True)
    (bundled / "alone" / "target" / "config.json").write_text("{}")
    expected = (
        r"a bundled pair with a draft \(python-completion\), got 'alone', which is neither; dow"
    )
    with pytest.raises(CheckpointError, match=expected):
        resolve_model("python-completion", "alone", bundled_dir=bundled)
    assert resolve_model("alone", bundled_dir=bundled).draft is None


def test_a_tilde_is_the_home_directory(
    bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    for name in ("~/m", Path("~/m")):
        found = resolve_model(name, name, bundled_dir=bundled)
        assert found == ModelPaths(tmp_path / "m", tmp_path / "m")
    with pytest.raises(CheckpointError, match="'~/nothing', which is neither"):
        resolve_model("~/nothing", bundled_dir=bundled)


def test_directories_are_taken_as_they_are(bundled: Path, tmp_path: Path, monkeypatch) -> None:
    assert resolve_model(tmp_path, bundled_dir=bundled) == ModelPaths(tmp_path, None)
    assert resolve_model(str(tmp_path), tmp_path, bundled_dir=bundled).draft == tmp_path
    monkeypatch.chdir(tmp_path)
    Path("python-completion").mkdir()
    paths = resolve_model("python-completion", bundled_dir=bundled)
    assert paths == ModelPaths(Path("python-completion"), None)


def test_unknown_names_are_refused_with_what_exists(bundled: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r'did you mean "python-completion"\?'):
        resolve_model("python-completions", bundled_dir=bundled)
    with pytest.raises(CheckpointError, match="'meta/llama', which is neither; download"):
        resolve_model("meta/llama", bundled_dir=bundled)
    with pytest.raises(CheckpointError, match="'nothing', which is neither"):
        resolve_model("python-completion", "nothing", bundled_dir=bundled)
    way_out = (
        f"none is installed.*; unset SDENGINE_BUNDLED_DIR, which says {tmp_path}/empty, or down"
    )
    with pytest.raises(CheckpointError, match=way_out):
        resolve_model("x", bundled_dir=tmp_path / "empty")
