"""The launch of timestamp."""

from __future__ import annotations

from typing import Any

from sdengine.kernels.launches.structs import Launch, TimestampArgs
from sdengine.kernels.spec import address


def launch_of(**args: Any) -> Launch:
    """The launch of checked arguments."""
    return Launch(TimestampArgs(address(args["out_ns"])), 1)
