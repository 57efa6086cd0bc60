"""What the policies ask of each layer: how wide it is, and by which rule its nodes are ranked."""

from __future__ import annotations

import pytest

from sdengine.core.config import SpeculationConfig
from sdengine.policies.dyspec import DySpecPolicy
from sdengine.policies.static import StaticPolicy


@pytest.mark.parametrize(
    ("verifier", "rules"),
    [("coupled", ("node", "uniform")), ("rejection", ("slot", "uniform_slot"))],
)
def test_drawn_nodes_are_ranked_before_the_draw(verifier: str, rules: tuple[str, str]) -> None:
    """By what they turned out to be, the kept ones would no longer have the draft's law."""
    dyspec = DySpecPolicy.from_config(SpeculationConfig(verifier=verifier))
    static = StaticPolicy.from_config(SpeculationConfig(method="sampled", verifier=verifier))
    assert (dyspec.grow(0).rule, static.grow(0).rule) == rules


def test_a_static_layer_is_as_wide_as_the_branches_above_it_make_it() -> None:
    policy = StaticPolicy((3, 2, 2), "uniform")
    layers = [policy.grow(layer) for layer in range(3)]
    assert [layer.max_children for layer in layers] == [3, 2, 2]
    assert [layer.max_width for layer in layers] == [3, 6, 12]
