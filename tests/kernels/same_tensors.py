"""Whether two arguments of an op hold the same."""

from __future__ import annotations

import torch

from sdengine.kernels.spec import tensors_of


def assert_same_tensors(name: str, left: object, right: object) -> None:
    """Two arguments `name` agree bit for bit, structs field by field."""
    mine, theirs = dict(tensors_of({name: left})), dict(tensors_of({name: right}))
    assert mine.keys() == theirs.keys()
    for field, tensor in mine.items():
        assert torch.equal(tensor, theirs[field]), field
