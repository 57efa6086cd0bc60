"""Muon for the hidden matrices and AdamW for embeddings and norms.

`torch.optim.Muon` orthogonalises one matrix after another in bf16, which CPUs without bf16
units emulate; here equal shapes are stacked and the iteration runs in fp32 unless told otherwise.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

STACK_SIZE = 4


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Push the singular values of each matrix towards 1 (into about [0.7, 1.2]).

    Args:
        matrices: fp32 or bf16 [batch, rows, columns]; unchanged.
        iterations: quintic Newton-Schulz steps.

    Returns:
        A new tensor of the same shape and dtype.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    return x.mT if is_tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, then an orthogonalised step, with decoupled weight decay.

    Args:
        params: 2-D parameters.
        lr: step size; a matrix moves by lr * sqrt(max(1, rows / columns)) in spectral norm.
        momentum: of the Nesterov average.
        weight_decay: decoupled, multiplied by lr.
        dtype: of the products that orthogonalise; weights and momentum stay as they are.
        map_function: `map`, or that of an executor whose threads share the work.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
        map_function: Callable[..., Iterable] = map,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._dtype, self._map = dtype, map_function

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Update every parameter that has a gradient, in place."""
        assert closure is None, "Muon evaluates no closure"
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[tuple(parameter.shape)].append(parameter)
            stacks = [
                parameters[first : first + STACK_SIZE]
                for parameters in by_shape.values()
                for first in range(0, len(parameters), STACK_SIZE)
            ]
            list(self._map(partial(self._step_stack, group), stacks))

    @torch.no_grad()  # the flag belongs to a thread, and this may be another one
    def _step_stack(self, group: dict, parameters: list[Tensor]) -> None:
        directions = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1.0 - group["momentum"])
            directions.append(parameter.grad.lerp(state["momentum"], group["momentum"]))
        updates = orthogonalise(torch.stack(directions).to(self._dtype)).float()
        size = group["lr"] * math.sqrt(max(1.0, parameters[0].shape[0] / parameters[0].shape[1]))
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-size)


def build_optimizers(
    module: nn.Module,
    matrix_lr: float,
    embedding_lr: float,
    weight_decay: float,
    dtype: torch.dtype = torch.float32,
    map_function: Callable[..., Iterable] = map,
) -> list[torch.optim.Optimizer]:
    """Muon for 2-D parameters except embeddings, AdamW for the rest.

    Args:
        module: whose parameters are optimised.
        matrix_lr: Muon's peak step size.
        embedding_lr: AdamW's peak step size for embeddings and norms.
        weight_decay: for matrices and embeddings; norms have none.
        dtype, map_function: see `Muon`.
    """
    named = dict(module.named_parameters())
    embeddings = [p for name, p in named.items() if "embed" in name]
    norms = [p for p in named.values() if p.ndim == 1]
    matrices = [p for name, p in named.items() if p.ndim == 2 and "embed" not in name]
    adamw = torch.optim.AdamW(
        [
            {"params": embeddings, "weight_decay": weight_decay},
            {"params": norms, "weight_decay": 0.0},
        ],
        lr=embedding_lr,
        betas=(0.9, 0.95),
        eps=1e-10,
    )
    optimizers = [
        Muon(
            matrices, matrix_lr, weight_decay=weight_decay, dtype=dtype, map_function=map_function
        ),
        adamw,
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers
