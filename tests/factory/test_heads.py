"""Models with heads that no kernel of attention takes."""

from __future__ import annotations

import pytest

from sdengine.errors import CheckpointError
from tests.engine.conftest import tiny_engine
from tests.model.checkpoints import make_checkpoint


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (
            {"hidden_size": 600, "num_attention_heads": 6},
            "head_dim in .* a multiple of 8 .*got 100",
        ),
        ({"hidden_size": 528, "num_attention_heads": 2}, "head_dim in .* up to 256, got 264"),
        (
            {"hidden_size": 1032, "num_attention_heads": 129, "num_key_value_heads": 1},
            "at most 128 query heads .*got 129",
        ),
    ],
)
def test_heads_that_no_kernel_takes_are_refused_before_weights_are_read(
    sizes: dict[str, int], words: str
) -> None:
    sizes = {"num_key_value_heads": sizes["num_attention_heads"], **sizes}
    model = str(make_checkpoint(num_hidden_layers=2, **sizes))
    with pytest.raises(CheckpointError, match=words):
        tiny_engine(model)
    with pytest.raises(CheckpointError, match=words):
        tiny_engine(draft=model, speculation="dyspec")
