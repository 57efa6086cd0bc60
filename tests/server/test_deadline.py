"""A deadline ends what stands under it, and nothing else."""

from __future__ import annotations

import asyncio
import sys

import pytest

from sdengine.server.deadline import Deadline


def test_what_ends_in_time_is_left_alone() -> None:
    async def main() -> str:
        with Deadline(0.02):
            result = "done"
        await asyncio.sleep(0.05)
        return result

    assert asyncio.run(main()) == "done"


def test_what_takes_too_long_is_cancelled_and_the_task_goes_on() -> None:
    seen = []

    async def main() -> None:
        with pytest.raises(TimeoutError), Deadline(0.01):
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise
        await asyncio.sleep(0)
        seen.append("went on")

    asyncio.run(main())
    assert seen == ["cancelled", "went on"]


def test_an_error_of_its_own_is_not_a_timeout() -> None:
    async def main() -> None:
        with Deadline(0.01):
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                raise KeyError from None

    with pytest.raises(KeyError):
        asyncio.run(main())


def test_a_cancellation_from_elsewhere_stays_one() -> None:
    async def wait() -> None:
        with Deadline(3600):
            await asyncio.sleep(3600)

    async def main() -> None:
        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="cancellations are not counted")
def test_a_cancellation_beside_its_own_stays_one() -> None:
    async def wait() -> None:
        with Deadline(0.0):
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)
            await asyncio.sleep(3600)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(wait())
