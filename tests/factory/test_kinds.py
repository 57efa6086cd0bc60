"""Every name that a configuration takes is made into something, and tested to be exact."""

from __future__ import annotations

from sdengine.core.config import (
    METHODS,
    METHODS_WITHOUT_DRAFT_MODEL,
    VERIFIERS,
    VERIFIERS_OF_DRAWS,
    SpeculationConfig,
)
from sdengine.engine import Engine
from sdengine.factory import kinds
from tests.engine import test_exactness, test_rejection

WHERE = "one line in sdengine/factory/kinds.py, one in sdengine/core/config.py"


def test_every_method_has_a_drafter() -> None:
    assert set(kinds.DRAFTERS) == set(METHODS), WHERE


def test_methods_of_a_draft_model_have_a_policy() -> None:
    assert set(kinds.POLICIES) == set(METHODS) - set(METHODS_WITHOUT_DRAFT_MODEL), WHERE


def test_every_verifier_is_made() -> None:
    assert set(kinds.VERIFIERS) == set(VERIFIERS), WHERE


def test_those_that_test_draws_are_the_verifiers_that_say_so() -> None:
    for name in VERIFIERS:
        speculation = SpeculationConfig(verifier=name, adaptive=False)
        with Engine("python-completion", speculation=speculation) as engine:
            draws_children = engine.iteration.verifier.draws_children
        assert draws_children == (name in VERIFIERS_OF_DRAWS), name


def test_every_method_is_tested_to_be_exact() -> None:
    coupled = {settings.get("method", "dyspec") for settings in test_exactness.METHODS.values()}
    drawn = {settings.get("method", "dyspec") for settings in test_rejection.METHODS.values()}
    assert coupled == set(METHODS), "tests/engine/test_exactness.py"
    assert drawn == set(METHODS) - {"kary"}, "tests/engine/test_rejection.py"
