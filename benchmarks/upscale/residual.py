"""The residual stream of a small model inside a wider one.

    wide = sqrt(E' / E) U h,  then one channel that holds the constant k        [E']

U [E', E] has orthonormal columns: a random rotation, so that every weight of the large model is
dense, or the first E channels. RMSNorm divides by the root of the mean square plus eps; over the
wide stream the mean square is (|h|^2 / E) + k^2 / E', so with eps' = eps - k^2 / E' and unit
weights it yields sqrt(E' / E) U (h / rms(h)). Its own weights move into the matrices that read it.

The constant channel exists where the vocabulary is larger. Nothing but the embedding writes it, so
it is k at the end, k / rms(h) after the last norm; the surplus rows of the output projection have
-SURPLUS there and the others 0. It is left out of the rotation: rotated, a bfloat16 stream loses a
constant that is a hundred times smaller than its neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

__all__ = ["ResidualEmbedding", "surplus_weight"]


def surplus_weight(dtype: torch.dtype) -> float:
    """What the surplus rows hold in the constant channel, negated.

    After the last norm the channel is about 0.1 / rms(h): 2^20 puts surplus logits below -100 up
    to an rms of 1000. float16 ends at 65504; 2^15 does so up to 30.
    """
    return 2.0**15 if dtype == torch.float16 else 2.0**20


@dataclass(frozen=True, slots=True)
class ResidualEmbedding:
    """How the small stream lies in the wide one.

    Args:
        basis: U, float64 [E', E]; its row of the constant channel is zero. (Weights computed in
            float32 and rounded again doubled the error of a float32 model.)
        constant: k, None where there is no such channel; the channel is the last.
        eps: of the large model's norms.
    """

    basis: torch.Tensor
    constant: float | None
    eps: float

    @classmethod
    def make(
        cls,
        small: int,
        wide: int,
        eps: float,
        *,
        has_constant: bool,
        is_rotated: bool,
        seed: int,
        device: str,
    ) -> ResidualEmbedding:
        """Draws U and chooses k: the largest power of two whose square takes at most half of eps.

        Args:
            small: E.
            wide: E', more than E where there is a constant channel.
            eps: of the small model's norms.
            has_constant: whether the channel is needed.
            is_rotated: a random rotation, or the first E channels.
            seed: of the rotation.
            device: where weights are computed.
        """
        free = wide - 1 if has_constant else wide
        if is_rotated:
            generator = torch.Generator().manual_seed(seed)
            normals = torch.randn(free, small, generator=generator, dtype=torch.float64)
            basis = torch.linalg.qr(normals)[0]
        else:
            basis = torch.eye(free, small, dtype=torch.float64)
        if not has_constant:
            return cls(basis.to(device), None, eps)
        constant = 2.0 ** math.floor(math.log2(math.sqrt(eps * wide / 2)))
        basis = torch.nn.functional.pad(basis, (0, 0, 0, 1))
        return cls(basis.to(device), constant, eps - constant**2 / wide)

    @property
    def scale(self) -> float:
        """sqrt(E' / E): norms of the wide stream then see the small one's mean square."""
        wide, small = self.basis.shape
        return math.sqrt(wide / small)

    def writing(self, weight: torch.Tensor, start: int, end: int) -> torch.Tensor:
        """Rows start to end of a matrix [E', n] that adds to the stream what `weight` [E, n] did.

        An embedding is the transpose of such a matrix.
        """
        return self.scale * (self.basis[start:end] @ weight)

    def reading(self, weight: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """A matrix [n, E'] that reads off the normed wide stream what `weight` [n, E] read off the
        small one, whose norm had the weights `norm` [E].
        """
        return (weight * norm) @ self.basis.T / self.scale
