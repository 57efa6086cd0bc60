"""What is published about a pair: held-out figures, corpus, versions, loss curves, model card."""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path

import numpy as np
import tokenizers
import torch

from sdengine.llm import LLM
from sdengine.train.data import SourceFile, TokenStream, corpus_sha256, evaluation_blocks
from sdengine.train.distill import PairConfig, Streams, evaluate_pair
from sdengine.train.export import MODEL_NAMES, load_exported
from sdengine.train.lineage import runs_behind, tokens_seen
from sdengine.train.sampling import generate, open_target, repeated_ngram_share, statement_prompts

COMPLETION_PROMPTS, COMPLETION_PROMPT_TOKENS, COMPLETION_TOKENS = 32, 32, 256


def software_versions() -> dict[str, str]:
    """Versions that the weights depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tokenizers": tokenizers.__version__,
        "numpy": np.__version__,
    }


def corpus_summary(files: list[SourceFile], streams: Streams) -> dict:
    """Size, hash and file list of the corpus; the held-out files by name."""
    return {
        "source": f"standard library of Python {platform.python_version()}",
        "sha256": corpus_sha256(files),
        "num_files": len(files),
        "train_tokens": len(streams.train),
        "held_out_tokens": len(streams.held_out),
        "train_bytes": streams.train.num_bytes,
        "held_out_bytes": streams.held_out.num_bytes,
        "held_out_files": [file.path for file in files if file.is_held_out],
        "files": {file.path: file.sha256 for file in files},
    }


def completion_loops(llm: LLM, held_out: TokenStream, temperature: float) -> float:
    """Share of 4-grams that a completion repeats, over completions of held-out statements."""
    prompts = statement_prompts(held_out, COMPLETION_PROMPTS, COMPLETION_PROMPT_TOKENS, seed=0)
    length = COMPLETION_PROMPT_TOKENS + COMPLETION_TOKENS
    text = generate(llm, prompts, length, [temperature] * len(prompts), 0, held_out.bos_id)
    return repeated_ngram_share(text[:, COMPLETION_PROMPT_TOKENS:], 4)


def held_out_figures(pair: Path, held_out: TokenStream, config: PairConfig) -> dict:
    """Loss, bits per byte, acceptance and loops of an exported pair on the held-out files.

    Losses and acceptance are teacher-forced over blocks of 1024 tokens without overlap.

    Raises:
        CheckpointError: if `pair` is no exported pair.
    """
    target, draft = (load_exported(pair / name, config.device) for name in MODEL_NAMES)
    blocks = evaluation_blocks(held_out, target.shape.max_position_embeddings)
    figures = evaluate_pair(target, draft, blocks.to(config.device))
    bits_per_nat_byte = len(held_out) / held_out.num_bytes / math.log(2.0)
    num_rows = min(COMPLETION_PROMPTS, len(held_out) // COMPLETION_TOKENS)
    truth = held_out.tokens[: num_rows * COMPLETION_TOKENS].reshape(num_rows, -1)
    llm = open_target(pair / "target", config.workers)
    return {
        "target_nats_per_token": figures["target_nll"],
        "draft_nats_per_token": figures["draft_nll"],
        "target_bits_per_byte": figures["target_nll"] * bits_per_nat_byte,
        "draft_bits_per_byte": figures["draft_nll"] * bits_per_nat_byte,
        "alpha_t1": figures["alpha"],
        "greedy_agreement": figures["greedy_agreement"],
        "repeated_4gram_share_greedy": completion_loops(llm, held_out, 0.0),
        "repeated_4gram_share_t0.8": completion_loops(llm, held_out, 0.8),
        "repeated_4gram_share_text": repeated_ngram_share(truth, 4),
    }


def model_card(manifest: dict) -> str:
    """The card in Markdown, figures taken from the manifest."""
    figures, corpus, recipe = manifest["held_out"], manifest["corpus"], manifest["recipe"]
    steps = {stage: schedule["step"] for stage, schedule in manifest["schedules"].items()}
    sizes = manifest["parameters"]
    tokens = tokens_seen(manifest)
    replanned = (
        " The cooldown was replanned while it ran (`cooldown_scale` in the manifest), so that a\n"
        "repetition gives an equivalent pair, not the same bits."
        if manifest["schedules"]["pair"]["cooldown_scale"] != 1.0
        else ""
    )
    start = "It began with random weights."
    if manifest.get("origin"):
        seen = f"{manifest['origin']['tokens_seen'] / 1e6:.1f}M"
        start = f"It began with an earlier pair of the same recipe, which had seen {seen} tokens."
        before = manifest["origin"]["parameters"]["target"]
        if before != sizes["target"]:
            start += (
                f"\nThat target had {before / 1e6:.2f}M parameters: layers and feed-forward units"
                " were added\nwhose outputs were zero at first, and all was trained on."
            )
        if steps["pair"] == 0:
            start += "\nThe target is still that pair's: this run went on with the draft alone."
    warning = (
        "**Provisional: exported from an unfinished training.**\n\n"
        if manifest["is_provisional"]
        else ""
    )
    rows = "\n".join(
        f"| {name} | {figures[f'{name}_nats_per_token']:.3f} "
        f"| {figures[f'{name}_bits_per_byte']:.3f} |"
        for name in MODEL_NAMES
    )
    return f"""# python-completion

{warning}A pair of small Llama-architecture models that continue Python source: a target of
{sizes["target"] / 1e6:.2f}M parameters and a draft of {sizes["draft"] / 1e6:.2f}M distilled from
it. It exists to show, test and measure speculative decoding on any computer. It has learnt the look
of Python, not programming: expect plausible, often meaningless code.

## Data and licence

Trained on the {corpus["source"]}: {corpus["num_files"]} files,
{corpus["train_tokens"] / 1e6:.2f}M training tokens, tests and a few packages excluded, every 20th
file held out (`MANIFEST.json` lists all files with hashes). That code is under the Python Software
Foundation License 2.0, and the models recite it, docstrings and names included; treat their output
accordingly.

## Training

`sdengine train pair` makes both in two stages (in the last run {steps["pair"]} and
{steps.get("draft", 0)} steps of {recipe["tokens_per_step"]} tokens, {recipe["precision"]}, seed
{recipe["seed"]}): target by cross-entropy with the draft following by forward KL, then
the draft alone by forward KL and the acceptance itself, half on corpus text, half on text sampled
from the target, which the draft reads many times and the target once. Matrices are stepped by
Muon, embeddings and norms by AdamW; warm-up, constant rate, linear cooldown with the sequence
length raised from 512 to 1024. Weights are stored in bf16. `loss_curve.png` shows the course.
{start}
In all the target saw {tokens / 1e6:.1f}M tokens, {tokens / corpus["train_tokens"]:.1f} passes over
the corpus; `--start-from` continues from here, and more steps buy a better
pair.{replanned}

{runs_table(manifest)}

## Figures

On the held-out files, exported weights, computed in fp32, teacher-forced in blocks of 1024 tokens:

| | loss, nats per token | bits per byte |
|---|---|---|
{rows}

Expected acceptance of a draft token at temperature 1 (mean of sum min(p, q)):
{figures["alpha_t1"]:.3f}. Same most likely token: {figures["greedy_agreement"]:.3f} of positions.

Small models loop. Share of 4-grams that a 256-token completion of a held-out statement repeats:
{figures["repeated_4gram_share_greedy"]:.2f} greedy, {figures["repeated_4gram_share_t0.8"]:.2f} at
temperature 0.8; {figures["repeated_4gram_share_text"]:.2f} in the held-out text itself. Loops are
easy to draft, so greedy speed-ups flatter.

## Limits

Context of 1024 tokens, a byte-level BPE vocabulary of 2048, Python source only, no instruction
following, nothing newer than the library it read.
"""


def runs_table(manifest: dict) -> str:
    """The runs behind a pair in Markdown: what their recipes differ in."""
    lines = [
        "Its runs, each from what the one before it left (`MANIFEST.json` has their recipes):",
        "",
        "| steps of both | of the draft alone | Muon's peak step | left out of what layers add "
        "| seed |",
        "|---|---|---|---|---|",
    ]
    for run in runs_behind(manifest):
        recipe, steps = run["recipe"], run["steps"]
        seed = recipe.get("seed", "not noted")
        lines.append(
            f"| {steps['pair']} | {steps.get('draft', 0)} | {recipe['matrix_lr']:.3g} "
            f"| {recipe.get('dropout') or 0.0:.0%} | {seed} |"
        )
    return "\n".join(lines)


def read_log(path: Path) -> list[dict]:
    """Records of a JSON-lines log; none if there is no file. A step logged twice counts once.

    A run that stopped hard repeats the steps after its last checkpoint; the later record wins. What
    it left of a line, on a full disk for example, is no record.
    """
    if not path.exists():
        return []
    records: dict[tuple[int, bool], dict] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        records[record["step"], "loss" in record] = record
    return [records[key] for key in sorted(records)]


def plot_losses(stage_logs: dict[str, list[dict]], path: Path) -> None:
    """Loss curves of the stages one after another, and the acceptance below them, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = {
        "loss": "training loss of the stage",
        "held_out_target_nll": "target, held out",
        "held_out_draft_nll": "draft, held out",
        "draft_kl": "KL(target || draft)",
        "held_out_alpha": "expected acceptance at T=1",
        "held_out_greedy_agreement": "greedy agreement",
    }
    figure, (losses, acceptance) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 7))
    for field, label in curves.items():
        steps, values, offset = [], [], 0
        for log in stage_logs.values():
            chosen = [record for record in log if field in record]
            steps += [offset + record["step"] for record in chosen]
            values += [record[field] for record in chosen]
            offset += max((record["step"] for record in log), default=0)
        axes = acceptance if field.endswith(("alpha", "agreement")) else losses
        axes.plot(steps, values, label=label, linewidth=1)
    offset = 0
    for name, log in stage_logs.items():
        for axes in (losses, acceptance):
            axes.axvline(offset, color="grey", linewidth=0.5)
        losses.text(offset, 7.0, f" {name}", color="grey")
        offset += max((record["step"] for record in log), default=0)
    losses.set_ylabel("nats per token")
    losses.set_ylim(0, 7.5)
    acceptance.set_xlabel("optimiser step")
    for axes in (losses, acceptance):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
