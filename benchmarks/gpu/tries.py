"""What slices that try configs of a kernel share: compiling them side by side, timing each."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Choice = TypeVar("Choice")


def compile_side_by_side(compile_one: Callable[[Job], None], jobs: list[Job]) -> None:
    """Calls a function of a module for every job, in processes of their own: Triton keeps what is
    compiled on disk for the others. A job that fails, or ends its process, is met again where it is
    timed; here it would cost all others."""
    workers = max(1, min(len(jobs), (os.cpu_count() or 1) - 2))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        pending = [(job, pool.submit(compile_one, job)) for job in jobs]
        for job, future in pending:
            error = future.exception()
            if error is not None:
                print(f"{job}: {type(error).__name__}: {error}", flush=True)


def time_each(
    choices: Iterable[Choice], time_one: Callable[[Choice], float]
) -> tuple[dict[Choice, float], int]:
    """Microseconds of every choice, and how many were left out: those for which there is too little
    shared memory. Whatever else is wrong is a failure."""
    times: dict[Choice, float] = {}
    left_out = 0
    for choice in choices:
        try:
            times[choice] = time_one(choice)
        except Exception as error:
            if "out of resource" not in str(error):
                raise
            left_out += 1
    return times, left_out
