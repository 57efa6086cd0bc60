"""Larger models that compute what the smaller ones did, and can learn more."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sdengine.errors import ConfigError
from sdengine.train.grow import grow
from sdengine.train.losses import cross_entropy


@pytest.mark.parametrize("layers, units", [(2, 96), (3, 96), (2, 97), (5, 200)])
def test_logits_stay(tiny_pair, layers, units):
    small = tiny_pair[0]
    shape = replace(small.shape, num_hidden_layers=layers, intermediate_size=units)
    token_ids = torch.randint(320, (2, 20))
    larger = grow(small, shape, seed=3)
    assert larger.shape == shape
    with torch.no_grad():
        torch.testing.assert_close(larger(token_ids), small(token_ids), rtol=1e-5, atol=1e-5)


def test_what_is_added_learns(tiny_pair):
    small = tiny_pair[0]
    shape = replace(small.shape, num_hidden_layers=3, intermediate_size=128)
    larger = grow(small, shape, seed=3)
    token_ids = torch.randint(320, (2, 20))
    cross_entropy(larger(token_ids[:, :-1]), token_ids[:, 1:]).backward()
    old_layers = [layer for layer in larger.model.layers if layer.mlp.down_proj.weight.any()]
    (added,) = set(larger.model.layers) - set(old_layers)
    assert len(old_layers) == 2
    assert added.self_attn.o_proj.weight.grad.any() and added.mlp.down_proj.weight.grad.any()
    for layer in old_layers:
        assert not layer.mlp.down_proj.weight[:, 96:].any()
        assert layer.mlp.down_proj.weight.grad[:, 96:].any()


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 1},
        {"intermediate_size": 80},
        {"num_hidden_layers": 3, "intermediate_size": 80},
        {"hidden_size": 128},
        {"num_key_value_heads": 4},
        {"rope_theta": 1e6},
    ],
)
def test_other_shapes_are_refused(tiny_pair, change):
    shape = replace(tiny_pair[0].shape, **change)
    with pytest.raises(ConfigError, match="a model that can grow to LlamaShape"):
        grow(tiny_pair[0], shape, seed=0)
