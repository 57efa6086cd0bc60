"""A larger model that computes what a smaller one does, as the start of its further training.

Layers and feed-forward units are added whose outputs are zero, so the logits stay as they are; the
gradients of those outputs are not zero, and training puts them to use.

Source: Chen, Goodfellow, Shlens 2016, "Net2Net"; Wu et al. 2024, "LLaMA Pro" (added layers begin
as the identity, between the old ones).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from sdengine.errors import ConfigError
from sdengine.train.module import LlamaModule, LlamaShape


@torch.no_grad()
def grow(model: LlamaModule, shape: LlamaShape, seed: int) -> LlamaModule:
    """`model` with more layers and wider feed-forward blocks; itself if it has that shape.

    Args:
        model: what to enlarge; unchanged.
        shape: like the model's, layers and `intermediate_size` at least as many.
        seed: of the weights that are added, which are drawn as those of a new model.

    Raises:
        ConfigError: if the shape differs in another way.
    """
    if model.shape == shape:
        return model
    old = model.shape
    grown = replace(
        old,
        num_hidden_layers=shape.num_hidden_layers,
        intermediate_size=shape.intermediate_size,
    )
    has_fewer_layers = shape.num_hidden_layers < old.num_hidden_layers
    if grown != shape or has_fewer_layers or shape.intermediate_size < old.intermediate_size:
        raise ConfigError.from_parts(f"a model that can grow to {shape}", str(old))
    larger = LlamaModule(shape, seed).to(model.cos.device)  # zero residual outputs throughout
    larger.model.embed_tokens.load_state_dict(model.model.embed_tokens.state_dict())
    larger.model.norm.load_state_dict(model.model.norm.state_dict())
    for index, layer in enumerate(model.model.layers):
        place = (index + 1) * shape.num_hidden_layers // old.num_hidden_layers - 1
        _fill(larger.model.layers[place], layer)
    return larger


def _fill(layer: nn.Module, source: nn.Module) -> None:
    """Copy every weight of `source` into the first rows and columns of that in `layer`."""
    weights: dict[str, Tensor] = dict(source.named_parameters())
    for name, parameter in layer.named_parameters():
        weight = weights[name]
        parameter[tuple(slice(size) for size in weight.shape)] = weight
