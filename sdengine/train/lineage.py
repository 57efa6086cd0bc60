"""What a pair comes from: the recipe of a run, and the pair that it began with."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from sdengine.errors import CheckpointError, ConfigError
from sdengine.train.distill import PairConfig
from sdengine.train.export import MODEL_NAMES, WEIGHTS_FILE, sha256_of


def adopt_tokenizer(directory: Path, start_from: Path) -> None:
    """Put the tokenizer of an exported pair into a run directory that has none yet.

    Raises:
        CheckpointError: if `start_from` has no tokenizer.
    """
    source = start_from / "target" / "tokenizer.json"
    if not source.exists():
        raise CheckpointError.from_parts(f"an exported pair in {start_from}", "no tokenizer.json")
    if not (directory / "tokenizer.json").exists():
        shutil.copyfile(source, directory / "tokenizer.json")


def origin_of(start_from: Path | None) -> dict[str, object] | None:
    """What a manifest says of the pair a run began with: its sizes, hashes of its weights, all the
    tokens that it had seen, and the runs it came from; None for a run from random weights.

    Raises:
        CheckpointError: if `start_from` is no exported pair.
    """
    if start_from is None:
        return None
    try:
        manifest = json.loads((start_from / "MANIFEST.json").read_text(encoding="utf-8"))
        weights = {name: sha256_of(start_from / name / WEIGHTS_FILE) for name in MODEL_NAMES}
        return {
            "weights_sha256": weights,
            "tokens_seen": tokens_seen(manifest),
            "parameters": manifest["parameters"],
            "runs": runs_behind(manifest),
        }
    except FileNotFoundError as error:
        missing = Path(error.filename or "").name
        raise CheckpointError.from_parts(
            f"an exported pair in {start_from}", f"no {missing}"
        ) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        what = f"a damaged MANIFEST.json ({type(error).__name__}: {error})"
        raise CheckpointError.from_parts(f"an exported pair in {start_from}", what) from error


def runs_behind(manifest: dict) -> list[dict]:
    """Recipe and steps of every run that a pair comes from, its own last; a manifest that knows
    nothing of those before its own begins with that."""
    steps = {stage: schedule["step"] for stage, schedule in manifest["schedules"].items()}
    before = (manifest.get("origin") or {}).get("runs", [])
    return [*before, {"recipe": manifest["recipe"], "steps": steps}]


def tokens_seen(manifest: dict) -> int:
    """Training tokens behind a pair's target: those of its own run, and of the pair that the run
    began with."""
    origin = manifest.get("origin") or {"tokens_seen": 0}
    steps = manifest["schedules"]["pair"]["step"]
    return steps * manifest["recipe"]["tokens_per_step"] + origin["tokens_seen"]


def pin_recipe(
    directory: Path, config: PairConfig, corpus_sha256: str, origin: dict[str, object] | None
) -> None:
    """Record the recipe of a new run; refuse to continue a run of another one.

    Raises:
        ConfigError: if `run.json` differs in a hyper-parameter, in the corpus or in the origin.
    """
    recipe = {**asdict(config), "corpus_sha256": corpus_sha256, "origin": origin}
    for name in ("device", "workers", "tokens_per_pass"):
        del recipe[name]  # a run may move between machines
    path = directory / "run.json"
    if not path.exists():
        path.write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
        return
    recorded = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name in recipe if recorded.get(name) != recipe[name]]
    if changed:
        name = changed[0]
        raise ConfigError.from_parts(
            f"{name}={recorded.get(name)} of the run in {directory}",
            f"{name}={recipe[name]}",
            "use another --run-dir for another recipe",
        )
