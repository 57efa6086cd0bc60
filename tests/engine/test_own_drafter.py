"""A drafter from outside the package: exact as any other, and only where it has buffers."""

from __future__ import annotations

import pytest

from sdengine.core.config import SpeculationConfig
from sdengine.core.sampling_params import SamplingParams
from sdengine.drafters.ngram import NgramDrafter
from sdengine.errors import ConfigError
from sdengine.runner.workspace import Workspace
from tests.engine.conftest import MakeEngine, related_draft, run_all

NGRAM = SpeculationConfig(method="ngram", max_nodes=6, max_depth=3, adaptive=False)
PROMPTS = [[5, 9, 5, 9, 5, 9, 5], [(7 * i) % 190 + 3 for i in range(20)]]
PARAMS = SamplingParams(max_tokens=30, temperature=0, ignore_eos=True)


def test_tokens_are_those_of_plain_decoding(make_engine: MakeEngine) -> None:
    made = []

    def make_drafter(workspace: Workspace) -> NgramDrafter:
        made.append(NgramDrafter(workspace, min_ngram=1, max_ngram=1))
        return made[0]

    engine = make_engine(speculation=NGRAM, make_drafter=make_drafter)
    assert engine.iteration.drafter is made[0]
    expected = run_all(make_engine(), PROMPTS, [PARAMS] * 2)
    assert run_all(engine, PROMPTS, [PARAMS] * 2) == expected


@pytest.mark.parametrize("name", ["max_depth", "tree_room"])
def test_one_that_asks_for_more_than_there_is_gets_a_typed_error(
    make_engine: MakeEngine, name: str
) -> None:
    def make_drafter(workspace: Workspace) -> NgramDrafter:
        drafter = NgramDrafter(workspace, min_ngram=1, max_ngram=1)
        setattr(drafter, name, getattr(drafter, name) + 8)  # a whole block more
        return drafter

    with pytest.raises(ConfigError, match=f"a drafter's {name} of at most"):
        make_engine(speculation=NGRAM, make_drafter=make_drafter)


@pytest.mark.parametrize("speculation", [None, SpeculationConfig(max_nodes=6, max_depth=3)])
def test_other_methods_have_no_place_for_it(
    make_engine: MakeEngine, speculation: SpeculationConfig | None
) -> None:
    with pytest.raises(ConfigError, match="ngram"):
        make_engine(
            draft=related_draft(),
            speculation=speculation,
            make_drafter=lambda workspace: NgramDrafter(workspace, 1, 1),
        )
