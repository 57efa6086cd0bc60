"""A pool that the system refuses its threads."""

from __future__ import annotations

import subprocess
import sys

NUM_STACKS = 12
SCRIPT = f"""
import resource
from sdengine.errors import ConfigError
from sdengine.kernels.program import make_pool

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
