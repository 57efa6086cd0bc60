"""Names of bundled model pairs, and which directories a model argument means."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from sdengine.errors import CheckpointError

__all__ = ["ModelPaths", "bundled_pairs", "resolve_model"]

BUNDLED_DIR = Path(__file__).resolve().parent.parent / "bundled"


@dataclass(frozen=True, slots=True)
class ModelPaths:
    """Directory of the target model, and of the draft model if there is one."""

    target: Path
    draft: Path | None


def bundled_pairs(bundled_dir: Path | None = None) -> list[str]:
    """Return the names of the pairs found in `bundled_dir`; None for the package's own."""
    root = BUNDLED_DIR if bundled_dir is None else bundled_dir
    return sorted(path.parent.parent.name for path in root.glob("*/target/config.json"))


def resolve_model(
    model: str | os.PathLike[str],
    draft: str | os.PathLike[str] | None = None,
    *,
    bundled_dir: Path | None = None,
) -> ModelPaths:
    """Find the directories of a target and a draft model.

    Args:
        model: a directory, or the name of a bundled pair; a directory of that name wins.
        draft: a directory; None for the pair's own draft, or none.
        bundled_dir: where pairs lie; None for the package's own.

    Raises:
        CheckpointError: nothing of that name; the message lists the bundled pairs. Or a directory
            that holds a pair instead of a model.
    """
    root = BUNDLED_DIR if bundled_dir is None else bundled_dir
    given_draft = None if draft is None else _directory(draft, root)
    if Path(model).is_dir():
        return ModelPaths(_directory(model, root), given_draft)
    if str(model) in bundled_pairs(root):
        pair = root / str(model)
        own_draft = pair / "draft"
        if given_draft is None and own_draft.is_dir():
            given_draft = own_draft
        return ModelPaths(pair / "target", given_draft)
    return ModelPaths(_directory(model, root), given_draft)


def _directory(name: str | os.PathLike[str], root: Path) -> Path:
    path = Path(name)
    if path.is_dir():
        _refuse_pair(path)
        return path
    pairs = bundled_pairs(root)
    close = difflib.get_close_matches(str(name), pairs, n=1)
    hint = (
        f'did you mean "{close[0]}"?' if close else "download a model first and pass its directory"
    )
    raise CheckpointError.from_parts(
        f"a model directory or a bundled pair ({', '.join(pairs) or 'none is installed'})",
        f"{os.fspath(name)!r}, which is neither",
        hint,
    )


def _refuse_pair(path: Path) -> None:
    """A trained pair is two models: which is the target and which the draft must be said."""
    is_pair = (path / "target" / "config.json").is_file()
    if is_pair and not (path / "config.json").exists():
        raise CheckpointError.from_parts(
            f"a file config.json in {path}",
            "a pair of models",
            f"pass {path / 'target'} as the model and {path / 'draft'} as the draft",
        )
