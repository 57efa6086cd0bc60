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


def has_tokenizer(model: Path) -> bool:
    """Whether a model's directory holds any file of a tokenizer; without one an engine runs it on
    token ids alone."""
    return any(model.glob("tokenizer*"))


def resolve_model(
    model: str | os.PathLike[str],
    draft: str | os.PathLike[str] | None = None,
    *,
    bundled_dir: Path | None = None,
) -> ModelPaths:
    """Find the directories of a target and a draft model.

    Args:
        model: a directory, or the name of a bundled pair; a directory of that name wins. A leading
            ~ is the user's home.
        draft: likewise, a pair's name for its draft; None for the draft of the pair that `model`
            names, or none.
        bundled_dir: where pairs lie, as SDENGINE_BUNDLED_DIR says; None for the package's own.

    Raises:
        CheckpointError: nothing of that name; the message lists the bundled pairs. Or a directory
            that holds a pair instead of a model.
    """
    root = BUNDLED_DIR if bundled_dir is None else bundled_dir
    target = _directory(model, root, "target")
    if draft is not None:
        return ModelPaths(target, _directory(draft, root, "draft"))
    pair = root / os.fspath(model)
    own_draft = pair / "draft"
    has_own = target == pair / "target" and own_draft.is_dir()
    return ModelPaths(target, own_draft if has_own else None)


def _directory(name: str | os.PathLike[str], root: Path, role: str) -> Path:
    """The directory that a name means for the `role` of target or draft."""
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        _refuse_pair(path)
        return path
    pairs = [pair for pair in bundled_pairs(root) if (root / pair / role).is_dir()]
    if str(name) in pairs:
        return root / str(name) / role
    close = difflib.get_close_matches(str(name), pairs, n=1)
    kind = "a bundled pair" if role == "target" else "a bundled pair with a draft"
    hint = (
        f'did you mean "{close[0]}"?' if close else "download a model first and pass its directory"
    )
    if not pairs and root != BUNDLED_DIR:
        hint = f"unset SDENGINE_BUNDLED_DIR, which says {root}, or {hint}"
    raise CheckpointError.from_parts(
        f"a model directory or {kind} ({', '.join(pairs) or 'none is installed'})",
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
