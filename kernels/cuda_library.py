"""The CUDA library: where it is, why it cannot be used here, and how an op's launch reaches it.

It is plain C: no torch headers, the CUDA runtime linked in. So it loads on a machine without a GPU,
and serves any torch. A launch goes to the current stream of its tensors' device, allocates nothing
and waits for nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sdengine.errors import BackendUnavailable
from sdengine.kernels.launches import launch_of
from sdengine.kernels.spec import expect_one_device

LIBRARY = Path(__file__).with_name("libsdengine_cuda.so")


class CudaLibrary:
    """A loaded library.

    Args:
        path: the shared object.
        device_type: "cuda"; "cpu" for a library that was built for the CPU's threads (tests).

    Raises:
        BackendUnavailable: it is missing, cannot be loaded, or was built from other sources.
    """

    def __init__(self, path: Path, device_type: str = "cuda") -> None:
        self.device_type = device_type
        if not path.is_file():
            raise BackendUnavailable(
                "backend 'cuda': the compiled library is missing; install a CUDA toolkit (nvcc) "
                "and run `make cuda`, or reinstall sdengine with SDENGINE_BUILD_CUDA=1"
            )
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise BackendUnavailable(f"backend 'cuda': {error}; reinstall sdengine") from None
        self._function("error_string").restype = ctypes.c_char_p
        self._function("sizeof").restype = ctypes.c_int64

    def launch(self, op: str, stream: int, **args: Any) -> None:
        """Launches an op whose arguments were checked.

        Args:
            op: its name.
            stream: address of the CUDA stream, 0 for the default one.

        Raises:
            BackendUnavailable: the library was built from other sources, or the launch failed.
        """
        launch = launch_of(op, args, self.sizeof(op), "cuda")
        batch_size = ctypes.c_int32(launch.batch_size)
        self._call(op, ctypes.byref(launch.arguments), batch_size, ctypes.c_void_p(stream))

    def begin_branch(self, count: int, stream: int, body: int) -> None:
        """Makes what is captured on another stream from now on a branch of the graph that is being
        captured on `stream`.

        Args:
            count: address of an int32 on the device: the branch runs if it is above 0.
            stream, body: addresses of CUDA streams.

        Raises:
            BackendUnavailable: the call failed; conditional nodes need a driver for CUDA 12.4.
        """
        addresses = (ctypes.c_void_p(address) for address in (count, stream, body))
        self._call("begin_branch", *addresses)

    def end_branch(self, body: int) -> None:
        """Ends the capture of a branch.

        Args:
            body: as for `begin_branch`.

        Raises:
            BackendUnavailable: what was captured cannot be in a branch.
        """
        self._call("end_branch", ctypes.c_void_p(body))

    def abandon_branch(self, body: int) -> None:
        """Ends the capture of a branch in which something failed, if it is still under way.

        Args:
            body: as for `begin_branch`.
        """
        self._call("abandon_branch", ctypes.c_void_p(body))

    def make_stream(self) -> int:
        """Address of a new stream of the current device. torch's own come out of a pool of 32, so
        that two of them may be one; a capture and each branch in it need a stream to themselves."""
        address = ctypes.c_void_p()
        self._call("make_stream", ctypes.byref(address))
        assert address.value is not None
        return address.value

    def free_stream(self, stream: int) -> None:
        """Frees a stream that `make_stream` made, once what was enqueued on it is done."""
        self._call("free_stream", ctypes.c_void_p(stream))

    def _call(self, name: str, *arguments: Any) -> None:
        error = self._function(name)(*arguments)
        if error != 0:
            reason = self._function("error_string")(error).decode()
            raise BackendUnavailable(f"backend 'cuda': {name}: {reason} (CUDA error {error})")

    def _function(self, name: str) -> Any:
        try:
            return getattr(self._library, f"sdengine_cuda_{name}")
        except AttributeError:
            raise BackendUnavailable(
                f"backend 'cuda': the compiled library has no {name}, it was built from other "
                "sources; run `make cuda`, or reinstall sdengine"
            ) from None

    def sizeof(self, op: str) -> int:
        """Bytes of the op's argument struct in the library."""
        return int(self._function("sizeof")(op.encode()))


@cache
def load_cuda() -> CudaLibrary:
    """The library that was installed.

    Raises:
        BackendUnavailable: as for `CudaLibrary`.
    """
    return CudaLibrary(LIBRARY)


def why_unavailable() -> str | None:
    """None when CUDA kernels can run here, otherwise the reason they cannot."""
    try:
        library = load_cuda()
    except BackendUnavailable as error:
        return str(error)
    if library.device_type == "cuda" and not torch.cuda.is_available():
        return "backend 'cuda': the library is built, but torch finds no usable CUDA device"
    return None


def serves(device: torch.device) -> bool:
    """Whether CUDA kernels can run on tensors of that device."""
    return why_unavailable() is None and load_cuda().device_type == device.type


def cuda_op(op: str, check: Callable[..., None]) -> Callable[..., None]:
    """The implementation that an `Op` lists under "cuda"; nothing is loaded before its first call.

    Args:
        op: its name.
        check: its contract.
    """

    def launch(**args: Any) -> None:
        check(**args)
        if _runs_on_threads():
            expect_one_device(op, args, "cpu")
            load_cuda().launch(op, 0, **args)
            return
        device = expect_one_device(op, args, "cuda")
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream(device).cuda_stream
            load_cuda().launch(op, stream, **args)

    return launch


def _runs_on_threads() -> bool:
    """Whether the library at hand was built for the CPU's threads."""
    try:
        return load_cuda().device_type == "cpu"
    except BackendUnavailable:
        return False
