"""Pools that lack threads, in forked processes above all, and the modes their workers run in."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from sdengine.errors import ConfigError
from sdengine.kernels.programs.program import make_pool, run_op

NUM_STACKS = 12
SCRIPT = f"""
import resource
from sdengine.errors import ConfigError
from sdengine.kernels.programs.program import make_pool

make_pool(2)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
stack = 8 << 20 if stack == resource.RLIM_INFINITY else stack
resource.setrlimit(resource.RLIMIT_AS, (size + {NUM_STACKS} * stack, -1))
try:
    make_pool(64)
except ConfigError as error:
    print(error)
make_pool(2)
"""


def test_too_many_threads_are_a_typed_error_and_leave_none_behind() -> None:
    """Some of them had started: a process whose pool forgets those aborts."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "expected 64 CPU threads" in done.stdout and "lower num_threads" in done.stdout


RUN = """
try:
    run_op("silu_and_mul", "cpu", pool=pool, **args)
except RuntimeError as error:
    sys.exit("make a new pool after the fork" not in str(error))
sys.exit(1)
"""
FORKED = """
import os, signal, sys
import torch
from sdengine.kernels.programs.program import make_pool, run_op

pool = make_pool(2)
num_rows = torch.tensor([2], dtype=torch.int32)
args = {{"x": torch.ones(2, 8), "out": torch.empty(2, 4), "num_rows": num_rows}}
child = os.fork()
if child:
    sys.exit(os.waitpid(child, 0)[1])
signal.alarm(60)
{action}
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
@pytest.mark.parametrize("action", ["del pool", "sys.exit(0)", RUN])
def test_a_forked_process_ends_a_pool_and_cannot_use_it(action: str) -> None:
    code = FORKED.format(action=action)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_pool_of_more_threads_than_it_can_count_is_refused() -> None:
    with pytest.raises(ConfigError, match="65536 CPU threads"):
        make_pool(65536)


def test_what_a_thread_flushes_to_zero_changes_no_bit() -> None:
    x = torch.full((64, 16), 1e-20)
    outs = [torch.empty(64, 8) for _ in range(2)]
    num_rows = torch.tensor([64], dtype=torch.int32)
    pools = [make_pool(1), make_pool(2)]
    torch.set_flush_denormal(True)
    try:
        for pool, out in zip(pools, outs, strict=True):
            run_op("silu_and_mul", "cpu", pool=pool, x=x, out=out, num_rows=num_rows)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(outs[0].view(torch.int32), outs[1].view(torch.int32))
    assert bool((outs[0] > 0).all()), "5e-41 each"


SMALL_STACK = """
import threading

from sdengine import Engine, SamplingParams

def complete():
    with Engine("python-completion", speculation=None, num_threads={threads}) as engine:
        engine.add_request("r", "def f(", SamplingParams(max_tokens=4, temperature=0))
        while engine.has_unfinished_requests():
            outputs = engine.step()
        print(len(outputs[0].outputs[0].token_ids))

threading.stack_size(256 << 10)
thread = threading.Thread(target=complete)
thread.start()
thread.join()
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_a_caller_needs_no_large_stack(threads: int) -> None:
    """It is worker 0: what a kernel needs beside its arguments must not lie on its stack."""
    code = SMALL_STACK.format(threads=threads)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr
