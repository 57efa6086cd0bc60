"""`sdengine train pair`: the bundled pair `python-completion`, from nothing to checkpoints.

Everything lives in a run directory: `run.json` (the recipe), `tokenizer.json`, one checkpoint and
one log per stage, the target's samples.  The same command continues whatever it finds there.

The defaults train a pair from random weights in some hours.  The bundled one took ten runs, nine
of them with `--start-from`: six of the draft alone (`--steps 0`), the last of them with a larger
one, and one that began by growing the target, which has seen the corpus 4.8 times by now.  More
steps make a better pair.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from tokenizers import Tokenizer

from sdengine.errors import CheckpointError, ConfigError
from sdengine.train.data import SourceFile, build_stream, corpus_sha256, standard_library_files
from sdengine.train.distill import DraftObjective, JointObjective, PairConfig, Streams
from sdengine.train.export import (
    MODEL_NAMES,
    export_checkpoint,
    load_exported,
    write_manifest,
)
from sdengine.train.grow import grow
from sdengine.train.lineage import adopt_tokenizer, origin_of, pin_recipe
from sdengine.train.loop import LoopConfig, LoopState, last_step, read_checkpoint, train
from sdengine.train.module import LlamaModule, LlamaShape
from sdengine.train.options import check_arguments, make_directories
from sdengine.train.report import (
    corpus_summary,
    held_out_figures,
    model_card,
    plot_losses,
    read_log,
    software_versions,
)
from sdengine.train.sampling import open_target, target_samples
from sdengine.train.tokenizer import train_tokenizer

VOCAB_SIZE = 2048
TARGET_SHAPE = LlamaShape(VOCAB_SIZE, 256, 1408, 10, 4, 2)
DRAFT_SHAPE = LlamaShape(VOCAB_SIZE, 128, 704, 2, 2, 1)


@dataclass(frozen=True, slots=True)
class Corpus:
    """The files, the tokenizer learnt on the training files, and both token streams."""

    files: list[SourceFile]
    tokenizer: Tokenizer
    streams: Streams


def prepare_corpus(directory: Path, root: Path | None = None) -> Corpus:
    """Read the library and learn the tokenizer, or take `tokenizer.json` from `directory`."""
    files = standard_library_files(root)
    train_files = [file for file in files if not file.is_held_out]
    path = directory / "tokenizer.json"
    if path.exists():
        tokenizer = Tokenizer.from_file(str(path))
    else:
        tokenizer = train_tokenizer((file.text for file in train_files), VOCAB_SIZE)
        tokenizer.save(str(path), pretty=False)
    held_out_files = [file for file in files if file.is_held_out]
    streams = Streams(build_stream(tokenizer, train_files), build_stream(tokenizer, held_out_files))
    return Corpus(files, tokenizer, streams)


def build_models(
    config: PairConfig, start_from: Path | None = None
) -> tuple[LlamaModule, LlamaModule]:
    """Target and draft, freshly initialised or those of the exported pair in `start_from`, which
    may be smaller than the recipe's.

    Raises:
        CheckpointError: if `start_from` is no exported pair.
        ConfigError: if its models cannot grow to the recipe's shapes.
    """
    if start_from is None:
        target = LlamaModule(TARGET_SHAPE, seed=config.seed).to(config.device)
        draft = LlamaModule(DRAFT_SHAPE, seed=config.seed + 1).to(config.device)
        return target, draft
    target, draft = (load_exported(start_from / name, config.device) for name in MODEL_NAMES)
    return grow(target, TARGET_SHAPE, config.seed), grow(draft, DRAFT_SHAPE, config.seed + 1)


def stage_configs(args: argparse.Namespace) -> tuple[LoopConfig, LoopConfig]:
    """Lengths of both stages; the draft's own stage is a cooldown from its first step, and so is a
    first one of no more steps than its cooldown."""
    cooldown_steps = min(args.cooldown_steps, args.steps)
    joint = LoopConfig(args.steps, warmup_steps=40, cooldown_steps=cooldown_steps)
    draft = LoopConfig(
        args.draft_steps,
        warmup_steps=10,
        cooldown_steps=args.draft_steps,
        checkpoint_seconds=60.0,
    )
    return joint, draft


def stored_samples(
    directory: Path, target: LlamaModule, corpus: Corpus, config: PairConfig, count: int
) -> np.ndarray:
    """The target's texts, uint16 [count, short_length + 1]; sampled once and kept in
    `samples.npy` of `directory`.

    Raises:
        ConfigError: another number of them is kept there.
    """
    path = directory / "samples.npy"
    if not path.exists():
        export_checkpoint(target, corpus.tokenizer, directory / "target")
        llm = open_target(directory / "target", config.workers)
        length = config.short_length + 1
        samples = target_samples(llm, corpus.streams.train, count, length, config.seed)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, samples)
        os.replace(partial, path)
    samples = np.load(path)
    if len(samples) != count:
        raise ConfigError.from_parts(
            f"--samples {len(samples)}, as many as {path} holds",
            str(count),
            "pass that number or another --run-dir",
        )
    return samples


def train_stages(args: argparse.Namespace, config: PairConfig, corpus: Corpus) -> bool:
    """Run or resume both stages; returns whether both reached their last step."""
    joint_config, draft_config = stage_configs(args)
    target, draft = build_models(config, args.start_from)
    joint = JointObjective(target, draft, corpus.streams, config)
    state = train("pair", joint, joint_config, args.run_dir)
    if state.step < last_step(state, joint_config):
        return False
    target.requires_grad_(False)
    samples = stored_samples(args.run_dir, target, corpus, config, args.samples)
    objective = DraftObjective(target, draft, corpus.streams, config, samples, args.run_dir)
    state = train("draft", objective, draft_config, args.run_dir)
    return state.step >= last_step(state, draft_config)


def require_checkpoint(directory: Path) -> None:
    """Refuse a run directory from which nothing could be exported.

    Raises:
        CheckpointError: if it has no checkpoint yet.
    """
    if not (directory / "pair.pt").exists():
        raise CheckpointError.from_parts(f"a checkpoint pair.pt in {directory}", "none")


def restore_models(
    directory: Path, config: PairConfig
) -> tuple[LlamaModule, LlamaModule, dict[str, dict]]:
    """Target and draft of the newest checkpoints, and the loop's state of each stage begun.

    Raises:
        CheckpointError: if the run directory has no checkpoint yet, or a damaged one.
    """
    require_checkpoint(directory)
    target, draft = build_models(config)
    schedules = {}
    for stage in ("pair", "draft"):
        path = directory / f"{stage}.pt"
        if path.exists():
            payload = read_checkpoint(path)
            schedules[stage] = payload["loop"]
            for name, module in zip(MODEL_NAMES, (target, draft)):
                if name in payload["modules"]:
                    module.load_state_dict(payload["modules"][name])
    return target, draft, schedules


def is_finished(args: argparse.Namespace, schedules: dict[str, dict]) -> bool:
    """Whether both stages reached their last step, by the states in their checkpoints."""
    configs = dict(zip(("pair", "draft"), stage_configs(args), strict=True))
    states = {stage: LoopState(**schedule) for stage, schedule in schedules.items()}
    return states.keys() == configs.keys() and all(
        states[stage].step >= last_step(states[stage], configs[stage]) for stage in configs
    )


def export_pair(
    args: argparse.Namespace, config: PairConfig, corpus: Corpus, origin: dict[str, object] | None
) -> dict:
    """Write both checkpoints with manifest, card and loss curve into `args.out`.

    Figures are measured on the exported weights, bf16 rounding included.  The manifest says
    `is_provisional` while a stage has steps left.  `args.out` may be the pair that the run began
    with, so what is said of that as `origin` was taken before.

    Returns:
        The manifest without its file list.
    """
    target, draft, schedules = restore_models(args.run_dir, config)
    for name, module in zip(MODEL_NAMES, (target, draft)):
        export_checkpoint(module, corpus.tokenizer, args.out / name)
    logs = {name: read_log(args.run_dir / f"{name}.jsonl") for name in ("pair", "draft")}
    manifest = {
        "name": "python-completion",
        "is_provisional": not is_finished(args, schedules),
        "parameters": {
            "target": target.shape.num_parameters(),
            "draft": draft.shape.num_parameters(),
        },
        "recipe": asdict(config),
        "origin": origin,
        "schedules": schedules,
        "versions": software_versions(),
        "corpus": corpus_summary(corpus.files, corpus.streams),
        "held_out": held_out_figures(args.out, corpus.streams.held_out, config),
    }
    plot_losses({name: log for name, log in logs.items() if log}, args.out / "loss_curve.png")
    (args.out / "MODEL_CARD.md").write_text(model_card(manifest), encoding="utf-8")
    write_manifest(args.out, manifest)
    return manifest


def run(args: argparse.Namespace) -> int:
    """Entry of `sdengine train pair`.

    Args:
        args: as declared by `add_arguments`.

    Returns:
        0 when the pair is finished and exported (or exported on request), 1 when training was
        told to stop before its end.

    Raises:
        ConfigError: for settings that make no sense or contradict the run directory, for a
            directory that cannot be written to, or without matplotlib.
        CheckpointError: if there is nothing to export.
    """
    check_arguments(args)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # AdamW's second moments are denormal for rare tokens
    origin = origin_of(args.start_from)
    if args.export_only:
        require_checkpoint(args.run_dir)
    make_directories(args)
    config = PairConfig(
        seed=args.seed, device=args.device, precision=args.precision, dropout=args.dropout
    )
    config = replace(
        config,
        matrix_lr=config.matrix_lr * args.rate,
        embedding_lr=config.embedding_lr * args.rate,
    )
    if args.device == "cpu":
        config = replace(config, workers=torch.get_num_threads())
        torch.set_num_threads(1)  # outside the workers there is little to do
    else:
        config = replace(config, tokens_per_pass=config.tokens_per_step)
    if args.start_from is not None:
        adopt_tokenizer(args.run_dir, args.start_from)
    corpus = prepare_corpus(args.run_dir)
    pin_recipe(args.run_dir, config, corpus_sha256(corpus.files), origin)
    if not args.export_only and not train_stages(args, config, corpus):
        print("stopped; the same command continues", file=sys.stderr)
        return 1
    figures = export_pair(args, config, corpus, origin)["held_out"]
    Console(file=sys.stderr).print_json(data=figures)
    return 0
