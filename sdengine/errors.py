"""Every error that sdengine raises on purpose; kernels called by themselves raise ValueError.

One base class and one class per reason a caller would act on differently. A message says what was
expected, what was got, and the way out; `SdengineError.from_parts` composes exactly that, so that
messages read alike everywhere.
"""

from __future__ import annotations

from typing import TypeVar

__all__ = [
    "BackendUnavailable",
    "CacheFull",
    "CheckpointError",
    "ConfigError",
    "EngineBusy",
    "EngineFailed",
    "EngineStopped",
    "RequestError",
    "RequestTimeout",
    "SdengineError",
]

ErrorT = TypeVar("ErrorT", bound="SdengineError")


class SdengineError(Exception):
    """Base of all errors that sdengine raises on purpose."""

    @classmethod
    def from_parts(cls: type[ErrorT], expected: str, got: str, way_out: str = "") -> ErrorT:
        """Compose "expected X, got Y; way out".

        Args:
            expected: what would have been accepted, naming the argument, file or tensor.
            got: what arrived instead.
            way_out: what the caller can do about it; left out of the message when empty.

        Returns:
            The error, ready to be raised.
        """
        message = f"expected {expected}, got {got}"
        return cls(f"{message}; {way_out}" if way_out else message)


class ConfigError(SdengineError):
    """An engine, speculation or environment setting is invalid or contradicts another one."""


class CheckpointError(SdengineError):
    """A checkpoint is missing, damaged, of a kind that is not supported, or gives logits that are
    not finite."""


class RequestError(SdengineError):
    """One request is invalid; other requests are not affected."""


class CacheFull(SdengineError):
    """Weights and KV cache do not fit into memory."""


class BackendUnavailable(SdengineError):
    """A kernel backend was asked for by name and cannot run here."""


class EngineBusy(SdengineError):
    """An engine has as many unfinished requests as it may, or is in the middle of another call; the
    same request may work later."""


class EngineStopped(SdengineError):
    """An engine takes no more requests, or ended one, because it is shutting down."""


class EngineFailed(SdengineError):
    """An engine's step raised, its process was forked, or it was closed; it runs nothing any more,
    and its unfinished requests are lost."""


class RequestTimeout(SdengineError):
    """A request was not finished within the time it was given."""
