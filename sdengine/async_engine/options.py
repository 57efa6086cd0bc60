"""What a call of AsyncEngine says besides its prompt and its sampling, checked at the door."""

from __future__ import annotations

from dataclasses import dataclass

from sdengine.core.argument import check_bool, check_float, shown
from sdengine.errors import RequestError, SdengineError

__all__ = ["CallOptions", "checked_timeout"]


@dataclass(frozen=True, slots=True)
class CallOptions:
    """The further arguments of a call. They are checked before the engine's thread sees them: what
    it stumbles over would be everybody's.

    Args:
        request_id, may_wait, timeout_s, wants_trees, group: as `AsyncEngine.submit`.

    Raises:
        RequestError: one is not what it must be.
    """

    request_id: str | None
    may_wait: bool
    timeout_s: float | None
    wants_trees: bool = False
    group: str | None = None

    def __post_init__(self) -> None:
        if self.request_id is not None and not isinstance(self.request_id, str):
            raise RequestError.from_parts("request_id to be a string", shown(self.request_id))
        if self.group is not None and not isinstance(self.group, str):
            raise RequestError.from_parts("group to be a string or None", shown(self.group))
        check_bool(RequestError, "may_wait", self.may_wait)
        check_bool(RequestError, "wants_trees", self.wants_trees)
        object.__setattr__(self, "timeout_s", checked_timeout(RequestError, self.timeout_s))


def checked_timeout(error: type[SdengineError], timeout_s: object) -> float | None:
    """Seconds as a float, or None for no limit.

    Raises:
        error: it is no finite number >= 0.
    """
    return None if timeout_s is None else check_float(error, "timeout_s", timeout_s, 0.0)
