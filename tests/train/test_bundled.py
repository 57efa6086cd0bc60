"""The weights in the repository are those of their manifest and do what it says of them."""

from __future__ import annotations

import inspect
import json
import textwrap
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

import sdengine
from sdengine.train.data import make_blocks
from sdengine.train.distill import evaluate_pair
from sdengine.train.export import load_exported, sha256_of

PAIR = Path(sdengine.__file__).parent / "bundled" / "python-completion"


@pytest.fixture(scope="module")
def manifest() -> dict:
    return json.loads((PAIR / "MANIFEST.json").read_text(encoding="utf-8"))


def test_files_are_those_of_the_manifest(manifest):
    assert manifest["is_provisional"] is False
    for name, recorded in manifest["files"].items():
        path = PAIR / name
        assert path.stat().st_size == recorded["bytes"], name
        assert sha256_of(path) == recorded["sha256"], name


def test_weights_are_small_enough_for_the_repository(manifest):
    sizes = [f["bytes"] for name, f in manifest["files"].items() if name.endswith("safetensors")]
    assert len(sizes) == 2 and sum(sizes) < 30e6


def test_target_and_draft_share_one_tokenizer(manifest):
    files = manifest["files"]
    assert files["target/tokenizer.json"]["sha256"] == files["draft/tokenizer.json"]["sha256"]


def test_the_pair_predicts_library_code_and_the_draft_agrees(manifest):
    """A wide bound: the text is not the held-out set, and other versions word it differently."""
    tokenizer = Tokenizer.from_file(str(PAIR / "target" / "tokenizer.json"))
    ids = tokenizer.encode(inspect.getsource(textwrap)).ids[:513]
    blocks = make_blocks(torch.tensor([ids]).numpy(), tokenizer.token_to_id("<|bos|>"))
    figures = evaluate_pair(load_exported(PAIR / "target"), load_exported(PAIR / "draft"), blocks)
    assert figures["target_nll"] < figures["draft_nll"] < 5.0, figures
    assert abs(figures["alpha"] - manifest["held_out"]["alpha_t1"]) < 0.15, figures
