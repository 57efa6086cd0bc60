"""The recipe end to end on a library of a few files, and what it publishes."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sdengine.errors import CheckpointError, ConfigError
from sdengine.llm import LLM
from sdengine.train import pair as recipe
from sdengine.train.distill import PairConfig
from sdengine.train.export import export_checkpoint, load_exported
from sdengine.train.loop import Control, LoopState, last_step
from sdengine.train.module import LlamaModule, LlamaShape
from sdengine.train.options import add_arguments
from sdengine.train.sampling import generate, open_target, repeated_ngram_share, target_samples
from tests.train.conftest import TINY_TARGET, source


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
def small_recipe(tmp_path, monkeypatch):
    """The command with models of a few thousand parameters and a library of 40 files."""
    library = tmp_path / "library"
    library.mkdir()
    for index in range(40):
        text = source(f"module{index}", 120).text
        (library / f"module{index:02d}.py").write_text(text, encoding="utf-8")
    prepare = recipe.prepare_corpus
    sizes = {"tokens_per_step": 256, "tokens_per_pass": 128, "short_length": 64}
    monkeypatch.setattr(recipe, "prepare_corpus", lambda run: prepare(run, library))
    monkeypatch.setattr(
        recipe, "PairConfig", lambda **kw: PairConfig(**kw, **sizes, long_length=128)
    )
    monkeypatch.setattr(recipe, "VOCAB_SIZE", 300)
    shape = LlamaShape(300, 32, 48, 2, 2, 1, head_dim=16, max_position_embeddings=512)
    monkeypatch.setattr(recipe, "TARGET_SHAPE", shape)
    monkeypatch.setattr(recipe, "DRAFT_SHAPE", replace(shape, num_hidden_layers=1))
    words = ["--out", str(tmp_path / "out"), "--run-dir", str(tmp_path / "run"), "--steps", "6"]
    return [*words, "--cooldown-steps", "2", "--draft-steps", "4", "--samples", "8"]


def test_command_trains_exports_and_documents_a_pair(small_recipe, tmp_path):
    assert recipe.run(arguments(*small_recipe)) == 0
    out = tmp_path / "out"
    manifest = json.loads((out / "MANIFEST.json").read_text())
    assert manifest["is_provisional"] is False
    pair, draft = manifest["schedules"]["pair"], manifest["schedules"]["draft"]
    assert (pair["step"], pair["cooldown_start"], draft["step"]) == (6, 4, 4)
    assert manifest["corpus"]["num_files"] == 40
    assert manifest["corpus"]["held_out_files"] == ["module19.py", "module39.py"]
    held_out = manifest["held_out"]
    assert 0 < held_out["alpha_t1"] <= 1
    assert held_out["target_bits_per_byte"] > 0
    for name in ("target/model.safetensors", "draft/tokenizer.json", "loss_curve.png"):
        assert manifest["files"][name]["bytes"] == (out / name).stat().st_size
    card = (out / "MODEL_CARD.md").read_text()
    assert "Provisional" not in card and f"{held_out['alpha_t1']:.3f}" in card
    assert np.load(tmp_path / "run" / "samples.npy").shape == (8, 65)


def test_precision_and_dropout_belong_to_the_recipe(small_recipe, tmp_path):
    assert recipe.run(arguments(*small_recipe, "--precision", "bf16", "--dropout", "0.1")) == 0
    manifest = json.loads((tmp_path / "out" / "MANIFEST.json").read_text())
    assert manifest["recipe"]["precision"] == "bf16" and manifest["recipe"]["dropout"] == 0.1
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert "steps of 256 tokens, bf16, seed" in card
    assert "| 6 | 4 | " in card and "| 10% | 0 |" in card
    with pytest.raises(ConfigError, match=r"precision=bf16 of the run .*precision=fp32"):
        recipe.run(arguments(*small_recipe, "--dropout", "0.1"))


def test_export_only_marks_what_is_unfinished(small_recipe, tmp_path):
    with pytest.raises(CheckpointError, match=r"expected a checkpoint pair\.pt"):
        recipe.run(arguments(*small_recipe, "--export-only"))
    assert recipe.run(arguments(*small_recipe)) == 0
    (tmp_path / "run" / "draft.pt").unlink()
    assert recipe.run(arguments(*small_recipe, "--export-only")) == 0
    manifest = json.loads((tmp_path / "out" / "MANIFEST.json").read_text())
    assert manifest["is_provisional"] is True
    assert "Provisional" in (tmp_path / "out" / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schedules": {"pair": 3}}'])
def test_what_cannot_work_leaves_nothing_behind(small_recipe, tmp_path, text):
    pair = tmp_path / "pair"
    for words in (["--export-only"], ["--start-from", str(pair)]):
        with pytest.raises(CheckpointError):
            recipe.run(arguments(*small_recipe, *words))
    for role in ("target", "draft"):
        (pair / role).mkdir(parents=True)
        (pair / role / "model.safetensors").touch()
    (pair / "MANIFEST.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"a damaged MANIFEST\.json"):
        recipe.run(arguments(*small_recipe, "--start-from", str(pair)))
    assert not (tmp_path / "out").exists() and not (tmp_path / "run").exists()


def test_another_recipe_in_the_same_run_directory_is_refused(small_recipe):
    assert recipe.run(arguments(*small_recipe)) == 0
    with pytest.raises(ConfigError, match=r"seed=0 of the run .*seed=7; use another --run-dir"):
        recipe.run(arguments(*small_recipe, "--seed", "7"))


def test_a_run_may_begin_with_an_exported_pair(small_recipe, tmp_path):
    assert recipe.run(arguments(*small_recipe)) == 0
    first = tmp_path / "out"
    again = ["--run-dir", str(tmp_path / "run2")]  # the new pair takes the old one's place
    words = [*small_recipe, *again, "--start-from", str(first), "--seed", "3"]
    began_with = json.loads((first / "MANIFEST.json").read_text())["files"]
    target, _ = recipe.build_models(recipe.PairConfig(), first)
    exported = load_exported(first / "target").state_dict()
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, exported[name]), name

    assert recipe.run(arguments(*words)) == 0
    manifest = json.loads((first / "MANIFEST.json").read_text())
    recorded = began_with["target/tokenizer.json"]
    assert manifest["files"]["target/tokenizer.json"] == recorded
    for name, digest in manifest["origin"]["weights_sha256"].items():
        assert digest == began_with[f"{name}/model.safetensors"]["sha256"]
    assert manifest["origin"]["tokens_seen"] == 6 * 256
    (run,) = manifest["origin"]["runs"]
    assert run["recipe"]["seed"] == 0 and run["steps"] == {"pair": 6, "draft": 4}
    card = (first / "MODEL_CARD.md").read_text()
    assert "began with an earlier pair" in card
    of_runs = [line for line in card.splitlines() if line.startswith("| 6 | 4 | ")]
    assert [line.endswith(f"| {seed} |") for line, seed in zip(of_runs, (0, 3))] == [True, True]
    with pytest.raises(ConfigError, match="origin="):  # the same run from something else
        recipe.run(arguments(*small_recipe, *again, "--seed", "3"))


def test_a_smaller_pair_grows_to_the_recipes_shapes(small_recipe, tmp_path, monkeypatch):
    assert recipe.run(arguments(*small_recipe)) == 0
    shape = replace(recipe.TARGET_SHAPE, num_hidden_layers=3, intermediate_size=80)
    monkeypatch.setattr(recipe, "TARGET_SHAPE", shape)
    words = ["--out", str(tmp_path / "out2"), "--run-dir", str(tmp_path / "run2")]
    again = [*small_recipe, *words, "--start-from", str(tmp_path / "out")]
    assert recipe.run(arguments(*again)) == 0
    assert load_exported(tmp_path / "out2" / "target").shape == shape
    assert "layers and feed-forward units" in (tmp_path / "out2" / "MODEL_CARD.md").read_text()


def test_no_steps_leave_the_target_and_train_the_draft_alone(small_recipe, tmp_path):
    assert recipe.run(arguments(*small_recipe)) == 0
    words = ["--out", str(tmp_path / "out2"), "--run-dir", str(tmp_path / "run2"), "--steps", "0"]
    again = [*small_recipe, *words, "--start-from", str(tmp_path / "out")]
    assert recipe.run(arguments(*again)) == 0
    manifests = [
        json.loads((tmp_path / out / "MANIFEST.json").read_text()) for out in ("out", "out2")
    ]
    steps = {name: stage["step"] for name, stage in manifests[1]["schedules"].items()}
    assert steps == {"pair": 0, "draft": 4}
    weights = {
        (out, name): (tmp_path / out / name / "model.safetensors").read_bytes()
        for out in ("out", "out2")
        for name in ("target", "draft")
    }
    assert weights["out", "target"] == weights["out2", "target"]
    assert weights["out", "draft"] != weights["out2", "draft"]
    assert "went on with the draft alone" in (tmp_path / "out2" / "MODEL_CARD.md").read_text()


def test_only_an_exported_pair_of_the_recipes_shapes_is_a_start(
    small_recipe, tmp_path, monkeypatch
):
    with pytest.raises(CheckpointError, match="an exported pair in"):
        recipe.run(arguments(*small_recipe, "--start-from", str(tmp_path)))
    assert recipe.run(arguments(*small_recipe)) == 0
    narrow = replace(recipe.DRAFT_SHAPE, intermediate_size=24)
    monkeypatch.setattr(recipe, "DRAFT_SHAPE", narrow)
    again = ["--run-dir", str(tmp_path / "run2"), "--start-from", str(tmp_path / "out")]
    with pytest.raises(ConfigError, match="a model that can grow to LlamaShape"):
        recipe.run(arguments(*small_recipe, *again))


@pytest.mark.parametrize("option", ["--steps", "--cooldown-steps", "--draft-steps", "--samples"])
def test_counts_must_be_positive(small_recipe, option):
    with pytest.raises(ConfigError, match=f"{option} of at least 1.*, got 0"):
        recipe.run(arguments(*small_recipe, option, "0"))


@pytest.mark.parametrize("seed", ["-1", str(10**20)])
def test_a_seed_must_not_be_negative_nor_huge(small_recipe, tmp_path, seed):
    with pytest.raises(ConfigError, match=f"--seed of at least 0 and below .*, got {seed}"):
        recipe.run(arguments(*small_recipe, "--seed", seed))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("share", ["-0.1", "1", "nan"])
def test_dropout_must_leave_something(small_recipe, share):
    with pytest.raises(ConfigError, match=f"--dropout of at least 0 and below 1, got {share}"):
        recipe.run(arguments(*small_recipe, "--dropout", share))


def test_a_run_of_fewer_steps_than_its_cooldown_is_no_longer():
    joint, _ = recipe.stage_configs(arguments("--out", "x", "--steps", "5"))
    state = LoopState()
    Control(Path("nowhere")).update_cooldown(state, joint)
    assert (state.cooldown_start, last_step(state, joint)) == (0, 5)


def test_samples_that_were_cut_short_are_made_again(small_recipe, tmp_path, monkeypatch):
    def full_disk(path, array):
        Path(path).write_bytes(b"\x93NUMPY")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full_disk)
        with pytest.raises(OSError, match="no space"):
            recipe.run(arguments(*small_recipe))
    assert recipe.run(arguments(*small_recipe)) == 0
    assert not list((tmp_path / "run").glob("*.partial*"))


def test_a_damaged_checkpoint_is_named(small_recipe, tmp_path):
    assert recipe.run(arguments(*small_recipe)) == 0
    checkpoint = tmp_path / "run" / "draft.pt"
    whole = checkpoint.read_bytes()
    for rest in (b"", b"no archive", whole[: len(whole) // 2]):
        checkpoint.write_bytes(rest)
        for words in ([], ["--export-only"]):
            with pytest.raises(CheckpointError, match=r"draft\.pt, got a damaged file"):
                recipe.run(arguments(*small_recipe, *words))


@pytest.mark.parametrize("option", ["--out", "--run-dir"])
def test_directories_are_made_before_anything_is_trained(small_recipe, tmp_path, option):
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "below"):
        with pytest.raises(
            ConfigError, match=f"{option} to be a directory to write to, got {path}"
        ):
            recipe.run(arguments(*small_recipe, option, str(path)))
    assert not (tmp_path / "run" / "tokenizer.json").exists()


def test_without_matplotlib_nothing_is_trained(small_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("sdengine.train.options.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"matplotlib .*sdengine\[train\]"):
        recipe.run(arguments(*small_recipe))
    assert not (tmp_path / "run").exists()


def test_help_names_defaults_and_how_long_it_takes(capsys):
    from sdengine.cli.main import main

    assert main(["train", "pair", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for default in ("(runs/pair)", "(1800)", "(10000)", "(cpu)", "hours"):
        assert default in out


@pytest.mark.parametrize("rate", ["0", "-1", "3", "nan"])
def test_rates_are_bounded(small_recipe, rate):
    with pytest.raises(ConfigError, match=r"--rate above 0"):
        recipe.run(arguments(*small_recipe, "--rate", rate))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_named(small_recipe):
    with pytest.raises(ConfigError, match="got cuda"):
        recipe.run(arguments(*small_recipe, "--device", "cuda"))


def test_shapes_of_the_bundled_pair_are_small_enough():
    total = recipe.TARGET_SHAPE.num_parameters() + recipe.DRAFT_SHAPE.num_parameters()
    assert total == sum(
        parameter.numel()
        for model in recipe.build_models(PairConfig())
        for parameter in model.parameters()
    )
    assert 2 * total < 30e6


@pytest.fixture
def exported(tmp_path, tokenizer):
    """Opens an engine on a module, by way of its checkpoint."""

    def open_engine(module: LlamaModule) -> LLM:
        export_checkpoint(module, tokenizer, tmp_path / "exported")
        return open_target(tmp_path / "exported", 1)

    return open_engine


def test_greedy_rows_follow_the_most_likely_token(tiny_pair, exported, tmp_path):
    llm = exported(tiny_pair[0])
    prompts = np.random.default_rng(0).integers(3, 320, (2, 5)).astype(np.uint16)
    text = generate(llm, prompts, 17, [0.0, 0.0], 0, bos_id=0)
    with torch.no_grad():
        logits = load_exported(tmp_path / "exported")(torch.from_numpy(text.astype(np.int64)))
    chosen = torch.from_numpy(text[:, 5:].astype(np.int64))
    behind = logits[:, 4:-1].amax(-1) - logits[:, 4:-1].gather(-1, chosen[..., None])[..., 0]
    assert np.array_equal(text[:, :5], prompts)
    assert behind.max() < 1e-2 < logits.std(), behind  # the engine computes in bf16


def test_rows_differ_by_seed_and_temperature(tiny_pair, exported):
    llm = exported(tiny_pair[0])
    prompts = np.full((4, 3), 7, dtype=np.uint16)
    greedy, first, second, cold = generate(llm, prompts, 30, [0.0, 1.0, 1.0, 0.0], 0, bos_id=0)
    assert np.array_equal(greedy, cold)
    assert not np.array_equal(first, second) and not np.array_equal(first, greedy)


def test_a_document_that_ends_is_followed_by_a_new_one(exported):
    module = LlamaModule(TINY_TARGET)  # fresh: the logits are those of the token's own embedding
    with torch.no_grad():
        module.model.embed_tokens.weight[:, 0] = 1.0
        module.model.embed_tokens.weight[1, 0] = 2.0
    text = generate(exported(module), np.array([[0, 5], [0, 6]], np.uint16), 7, [0.0, 0.0], 0, 0)
    assert text.tolist() == [[0, 5, 1, 0, 1, 0, 1], [0, 6, 1, 0, 1, 0, 1]]


def test_samples_are_reproducible_and_start_at_statements(tiny_pair, exported, streams, tokenizer):
    llm = exported(tiny_pair[0])
    first, second = (target_samples(llm, streams.train, 10, 24, 3, 8) for _ in range(2))
    assert first.shape == (10, 24) and np.array_equal(first, second)
    assert all(tokenizer.decode(row[1:8].tolist()).startswith("def ") for row in first)


def test_repeated_ngram_share():
    assert repeated_ngram_share(np.array([[1, 2, 3, 4, 5]]), 2) == 0.0
    assert repeated_ngram_share(np.array([[1, 1, 1, 1, 1]]), 2) == 0.75


def test_log_written_twice_counts_once(tmp_path: Path):
    from sdengine.train.report import read_log

    path = tmp_path / "run.jsonl"
    path.write_text(
        '{"step": 1, "loss": 3.0}\n{"step": 1, "held_out_alpha": 0.5}\n{"step": 1, "loss": 2.0}\n'
    )
    assert [record.get("loss") for record in read_log(path)] == [None, 2.0]


def test_a_line_that_was_cut_short_is_no_record(tmp_path):
    from sdengine.train.report import read_log

    path = tmp_path / "run.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "lo{"step": 3, "loss": 1.0}\n{"st')
    assert read_log(path) == [{"step": 1, "loss": 3.0}]


def test_another_number_of_samples_than_was_kept_is_refused(small_recipe, tmp_path):
    assert recipe.run(arguments(*small_recipe)) == 0
    with pytest.raises(ConfigError, match=r"--samples 8, as many as .*samples\.npy holds, got 9;"):
        recipe.run(arguments(*small_recipe, "--samples", "9"))
