"""Sizes of well-known Llama models, and the sizes of any other from its config.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from sdengine.errors import ConfigError
from sdengine.model.config import ModelConfig
from sdengine.model.config_file import parse_model_config, read_json

__all__ = ["SHAPES", "Shape", "resolve_shape"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What the cost of a Llama model depends on; names as in config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int

    @classmethod
    def from_config(cls, config: ModelConfig) -> Shape:
        """The shape of a parsed config.json."""
        return cls(
            config.hidden_size,
            config.intermediate_size,
            config.num_layers,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.vocab_size,
        )

    def as_config(self) -> dict[str, int]:
        """The entries of a config.json that are a shape's."""
        return asdict(self)

    @property
    def qkv_size(self) -> int:
        """Features of a layer's queries, keys and values together."""
        return (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Weights of a model of this shape, input and output embedding apart."""
        heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads
        layer = self.hidden_size * (heads * self.head_dim + 3 * self.intermediate_size + 2)
        return self.num_hidden_layers * layer + self.hidden_size * (2 * self.vocab_size + 1)


SHAPES = {
    "pair-target": Shape(256, 1408, 10, 4, 2, 64, 2048),  # the bundled pair
    "pair-draft": Shape(128, 704, 2, 2, 1, 64, 2048),
    "68m": Shape(768, 3072, 2, 12, 12, 64, 32000),  # JackFram/llama-68m
    "160m": Shape(768, 3072, 12, 12, 12, 64, 32000),  # JackFram/llama-160m
    "1.1b": Shape(2048, 5632, 22, 32, 4, 64, 32000),  # TinyLlama
    "llama-3.2-1b": Shape(2048, 8192, 16, 32, 8, 64, 128256),
    "7b": Shape(4096, 11008, 32, 32, 32, 128, 32000),  # Llama 2
    "8b": Shape(4096, 14336, 32, 32, 8, 128, 128256),  # Llama 3, 3.1
    "13b": Shape(5120, 13824, 40, 40, 40, 128, 32000),  # Llama 2
    "70b": Shape(8192, 28672, 80, 64, 8, 128, 128256),  # Llama 3, 3.1
}


def resolve_shape(name: str) -> Shape:
    """A named shape, or that of a config.json.

    Args:
        name: key of SHAPES, a config.json, or a directory that holds one.

    Raises:
        ConfigError: neither a name nor a file.
        CheckpointError: the file describes no supported model.
    """
    if name in SHAPES:
        return SHAPES[name]
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError.from_parts(
            f"a shape among {', '.join(SHAPES)}, or a config.json", repr(name)
        )
    return Shape.from_config(parse_model_config(read_json(path)))
