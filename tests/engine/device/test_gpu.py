"""The engine on a GPU: the CPU's tokens in float32, and speculation that changes none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.engine.conftest import run_outputs
from tests.engine.device.conftest import MakePair
from tests.engine.device.test_staged import METHODS, PROMPTS, params_of, run, spec_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
COUPLED = [method for method in METHODS if "rejection" not in method and method != "plain"]


def tokens(make_tiny: MakePair, method: str, dtype: str, **settings: Any) -> list[list[int]]:
    engine = make_tiny(
        "triton", device="cuda", speculation=spec_of(method), dtype=dtype, **settings
    )
    outputs = run_outputs(engine, PROMPTS, [params_of(i) for i in range(len(PROMPTS))])
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.parametrize("method", METHODS)
def test_tokens_are_the_cpu_s(make_tiny: MakePair, method: str) -> None:
    expected = [seen[0] for seen in run(make_tiny("cpu", speculation=spec_of(method)))]
    assert tokens(make_tiny, method, "float32") == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("method", COUPLED)
def test_speculation_changes_nothing(make_tiny: MakePair, method: str, dtype: str) -> None:
    assert tokens(make_tiny, method, dtype) == tokens(make_tiny, "plain", dtype)


@pytest.mark.parametrize("method", ["dyspec", "ngram", "plain"])
def test_conditional_graphs_change_nothing(make_tiny: MakePair, method: str) -> None:
    expected = tokens(make_tiny, "plain", "bfloat16")
    assert tokens(make_tiny, method, "bfloat16", conditional_graphs=True) == expected


def test_preemption_and_batches_change_nothing(make_tiny: MakePair) -> None:
    alone = tokens(make_tiny, "plain", "bfloat16", max_num_seqs=1)
    assert tokens(make_tiny, "dyspec", "bfloat16", max_num_seqs=3, num_kv_blocks=12) == alone
