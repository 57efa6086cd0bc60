"""timestamp: two launches of one program bracket what lies between them."""

from __future__ import annotations

from time import perf_counter_ns

import pytest
import torch

from sdengine.kernels.programs.program import make_pool, make_program


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_brackets_the_launches_between(backend: str) -> None:
    before, after = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    weight = torch.randn(64, 4096)
    program = make_program(backend, make_pool(2))
    program.launch("timestamp", out_ns=before)
    for _ in range(20):
        program.launch(
            "embed",
            tokens=torch.zeros(64, dtype=torch.int32),
            weight=weight,
            out=torch.empty(64, 4096),
            num_rows=torch.tensor([64], dtype=torch.int32),
        )
    program.launch("timestamp", out_ns=after)
    start = perf_counter_ns()
    program.replay()
    elapsed = perf_counter_ns() - start
    assert 0 < int(after - before) <= elapsed


def test_refuses_another_dtype() -> None:
    with pytest.raises(ValueError, match=r"out_ns: expected torch\.int64"):
        make_program("reference").launch("timestamp", out_ns=torch.zeros(1))
