"""The trainer's model is the Llama architecture: exported weights agree with the reference."""

from __future__ import annotations

import json

import pytest
import torch

from sdengine.errors import CheckpointError
from sdengine.train.export import export_checkpoint, load_exported, sha256_of, write_manifest
from sdengine.train.losses import cross_entropy
from sdengine.train.module import Dropout
from sdengine.train.optim import build_optimizers, orthogonalise


def test_exported_checkpoint_gives_the_reference_logits(tiny_pair, tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    token_ids = torch.randint(320, (2, 40), generator=torch.Generator().manual_seed(0))
    for index, module in enumerate(tiny_pair):
        directory = tmp_path / str(index)
        export_checkpoint(module, tokenizer, directory)
        reference = transformers.LlamaForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        )
        with torch.no_grad():
            expected = reference(token_ids).logits
            torch.testing.assert_close(
                load_exported(directory)(token_ids), expected, rtol=1e-4, atol=1e-4
            )
        fast = transformers.AutoTokenizer.from_pretrained(directory)
        assert fast("def f(x):")["input_ids"] == tokenizer.encode("def f(x):").ids
        assert fast.eos_token_id == 1 and fast.pad_token_id == 2


def test_exported_names_and_dtype(tiny_pair, tokenizer, tmp_path):
    from safetensors.torch import load_file

    export_checkpoint(tiny_pair[0], tokenizer, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in tensors
    assert "model.layers.1.self_attn.k_proj.weight" in tensors
    assert all(tensor.dtype == torch.bfloat16 for tensor in tensors.values())
    assert sum(tensor.numel() for tensor in tensors.values()) == (
        tiny_pair[0].shape.num_parameters()
    )


def test_loading_from_an_empty_directory_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected an exported model .*got no config.json"):
        load_exported(tmp_path)


def test_manifest_hashes_every_file(tiny_pair, tokenizer, tmp_path):
    export_checkpoint(tiny_pair[1], tokenizer, tmp_path / "draft")
    write_manifest(tmp_path, {"name": "x"})
    manifest = json.loads((tmp_path / "MANIFEST.json").read_text())
    weights = tmp_path / "draft" / "model.safetensors"
    recorded = manifest["files"]["draft/model.safetensors"]
    assert recorded == {"bytes": weights.stat().st_size, "sha256": sha256_of(weights)}
    assert len(manifest["files"]) == 5 and manifest["name"] == "x"


def test_a_later_token_changes_nothing_earlier(tiny_pair):
    first = torch.randint(320, (1, 20))
    second = first.clone()
    second[0, 12] = (second[0, 12] + 1) % 320
    with torch.no_grad():
        before, after = tiny_pair[0](first), tiny_pair[0](second)
    torch.testing.assert_close(before[:, :12], after[:, :12], rtol=0, atol=1e-6)
    assert (before[:, 12:] - after[:, 12:]).abs().max() > 1e-3


def test_one_batch_can_be_learnt_by_heart(tiny_pair):
    target = tiny_pair[0]
    token_ids = torch.randint(320, (4, 33), generator=torch.Generator().manual_seed(0))
    optimizers = build_optimizers(target, 0.02, 1e-2, 0.0)
    losses = []
    for _ in range(60):
        loss = cross_entropy(target(token_ids[:, :-1]), token_ids[:, 1:])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0], (losses[0], losses[-1])


def test_dropout_keeps_the_mean_and_repeats_itself():
    x = torch.full((200, 500), 3.0)
    dropped = Dropout(0.2, seed=5)(x)
    left_out = float((dropped == 0).float().mean())
    assert left_out == pytest.approx(0.2, abs=0.01)
    assert torch.equal(dropped[dropped != 0], torch.full_like(dropped[dropped != 0], 3.0 / 0.8))
    assert torch.equal(dropped, Dropout(0.2, seed=5)(x))
    assert not torch.equal(dropped, Dropout(0.2, seed=6)(x))


def test_dropout_reaches_every_layer(tiny_pair):
    """With nothing added to the residual stream a model is its embedding and head."""
    target = tiny_pair[0]
    token_ids = torch.randint(320, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        bare = target.head(target.model.norm(target.model.embed_tokens(token_ids)))
        assert torch.equal(target(token_ids, torch.zeros_like), bare)
        assert not torch.equal(target(token_ids), bare)


def loss_and_gradients(module, token_ids):
    logits = module(token_ids[:, :-1])
    loss = cross_entropy(logits, token_ids[:, 1:])
    return logits, torch.autograd.grad(loss, list(module.parameters()))


def test_layers_in_bf16_give_nearly_the_same_gradients(tiny_pair):
    target = tiny_pair[0]
    token_ids = torch.randint(320, (4, 33), generator=torch.Generator().manual_seed(0))
    logits, gradients = loss_and_gradients(target, token_ids)
    target.layer_dtype = torch.bfloat16
    rounded_logits, rounded = loss_and_gradients(target, token_ids)
    assert rounded_logits.dtype == torch.float32
    # Rounded as the layers are, not as logits of bf16 would be.
    assert not torch.equal(rounded_logits, rounded_logits.bfloat16().float())
    error = float(((rounded_logits - logits).norm() / logits.norm()).detach())
    assert 1e-4 < error < 0.02, error
    for expected, seen in zip(gradients, rounded, strict=True):
        assert seen.dtype == torch.float32
        assert torch.cosine_similarity(expected.flatten(), seen.flatten(), dim=0) > 0.99


def test_weights_stay_in_fp32_where_muon_multiplies_in_bf16(tiny_pair):
    """Steps are much smaller than a weight's last bit in bf16."""
    target = tiny_pair[0]
    weight = target.model.layers[0].mlp.up_proj.weight
    moved = []
    for dtype in (torch.float32, torch.bfloat16):
        before = weight.detach().clone()
        weight.grad = torch.ones_like(weight).tril()
        muon, _ = build_optimizers(target, 1e-5, 1e-3, 0.0, dtype)
        muon.step()
        moved.append(weight.detach() - before)
    assert weight.dtype == torch.float32
    assert not torch.equal(*moved)
    torch.testing.assert_close(*moved, rtol=0, atol=6e-7)
    assert moved[1].abs().max() > 3e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonalise_levels_the_singular_values(dtype):
    for shape in ((3, 16, 40), (2, 40, 16), (1, 24, 24)):
        matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        matrices *= torch.logspace(-1, 1, shape[-1])
        levelled = orthogonalise(matrices.to(dtype))
        assert levelled.dtype == dtype
        levelled = levelled.float()
        singular = torch.linalg.svdvals(levelled)
        assert levelled.shape == matrices.shape
        # The quintic does not converge to 1, it herds values into a band around it.
        assert singular.max() < 1.4 and singular.mean() > 0.6, singular
        spread = torch.linalg.svdvals(matrices)
        assert (spread.amax() / spread.amin()) > 2 * (singular.amax() / singular.amin())


def test_every_parameter_has_exactly_one_optimizer(tiny_pair):
    optimizers = build_optimizers(tiny_pair[0], 0.02, 1e-3, 0.1)
    owned = [p for optimizer in optimizers for g in optimizer.param_groups for p in g["params"]]
    assert sorted(map(id, owned)) == sorted(map(id, tiny_pair[0].parameters()))
    muon = {id(p) for g in optimizers[0].param_groups for p in g["params"]}
    assert id(tiny_pair[0].model.embed_tokens.weight) not in muon
    assert id(tiny_pair[0].model.norm.weight) not in muon
