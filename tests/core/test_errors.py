"""The closed list of errors, and how messages are composed."""

from __future__ import annotations

import pytest

from sdengine import errors


def test_the_list_is_closed_and_has_one_base() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert defined == set(errors.__all__)
    assert set(errors.SdengineError.__subclasses__()) == {
        errors.ConfigError,
        errors.CheckpointError,
        errors.RequestError,
        errors.CacheFull,
        errors.BackendUnavailable,
        errors.EngineBusy,
        errors.EngineStopped,
        errors.EngineFailed,
        errors.RequestTimeout,
    }


@pytest.mark.parametrize("name", errors.__all__)
def test_messages_say_expected_got_and_way_out(name: str) -> None:
    kind = getattr(errors, name)
    error = kind.from_parts("x >= 1", "0", "raise x")
    assert type(error) is kind
    assert str(error) == "expected x >= 1, got 0; raise x"
    assert str(kind.from_parts("x >= 1", "0")) == "expected x >= 1, got 0"
