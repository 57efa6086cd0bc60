"""Where an engine runs: which backend, on which device, and in whose memory its buffers lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sdengine.core.config import EngineConfig
from sdengine.errors import BackendUnavailable, ConfigError
from sdengine.kernels import backends, cuda_library
from sdengine.kernels.cpu_library import load_cpu
from sdengine.kernels.programs.device_program import is_captured, usable_kernels
from sdengine.kernels.programs.graph_branches import GraphBranches
from sdengine.kernels.programs.memory import HostMemory, Memory, StagedMemory
from sdengine.runner.weights import DeviceLayout, Layout, PackedLayout

DEVICE_BACKENDS = ("triton", "cuda")
INTERPRETER = "TRITON_INTERPRET=1 (Triton's interpreter: slow, without bfloat16, for tests)"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an engine runs.

    Args:
        backend: of its programs.
        memory: of its buffers.
        branches: lets a CUDA graph skip draft layers without rows, where that was asked for.
    """

    backend: str
    memory: Memory
    branches: GraphBranches | None = None

    @property
    def is_device(self) -> bool:
        """Whether kernels work in memory of their own."""
        return isinstance(self.memory, StagedMemory)

    @property
    def is_interpreted(self) -> bool:
        """Whether Triton's interpreter stands for a GPU."""
        return self.is_device and self.memory.device.type == "cpu"

    @property
    def prefers_bfloat16(self) -> bool:
        """Whether this is a CPU with instructions for bfloat16, which the kernels use where they
        are fast; not when SDENGINE_ISA withholds AVX-512 altogether."""
        if self.backend != "cpu":
            return False
        native = load_cpu()
        uses_avx512 = native.selected_isa() in ("avx512", "avx512_bf16")
        return uses_avx512 and bool(native.detected_isa() == "avx512_bf16")

    def layout(self, dtype: torch.dtype, pool: Any) -> Layout:
        """How a model's tensors are laid out here."""
        if isinstance(self.memory, StagedMemory):
            return DeviceLayout(self.memory)
        return PackedLayout(dtype, pool)


def choose_placement(config: EngineConfig, preferred: str | None) -> Placement:
    """The backend and device that the settings ask for.

    Device "auto" is the CPU unless the backend is a GPU's. Without a backend a GPU runs "triton", a
    CPU the compiled extension, or the reference where that was not built.

    Args:
        config: the settings.
        preferred: the environment's backend, when the settings have none.

    Raises:
        ConfigError: a device and a backend that do not belong together.
        BackendUnavailable: what was asked for by name cannot run here; says why.
    """
    wanted = config.backend if config.backend is not None else preferred
    on_gpu = config.device.startswith("cuda")
    if wanted in DEVICE_BACKENDS or (wanted is None and on_gpu):
        backend = wanted or "triton"
        device = _device(config.device, backend)
        usable_kernels(backend, device)
        return Placement(backend, StagedMemory(device), _branches(config, device))
    if on_gpu:
        raise ConfigError.from_parts(
            f'backend "triton" or "cuda" on device {config.device!r}', repr(wanted)
        )
    if wanted is None:
        wanted = "cpu" if backends.why_unavailable("cpu") is None else "reference"
    _require(wanted)
    memory = HostMemory()
    return Placement(wanted, memory, _branches(config, memory.device))


def _branches(config: EngineConfig, device: torch.device) -> GraphBranches | None:
    if not config.conditional_graphs:
        return None
    if not is_captured(device):
        raise ConfigError.from_parts(
            "conditional_graphs=False on a CPU", "True", "it has no graphs; it skips them anyway"
        )
    return GraphBranches(cuda_library.load_cuda())


def _device(name: str, backend: str) -> torch.device:
    """The device of a GPU backend."""
    is_interpreted = backends.is_interpreted()
    if is_interpreted and not name.startswith("cuda"):
        return torch.device("cpu")
    if name == "cpu":
        raise BackendUnavailable(
            f"backend {backend!r} on device 'cpu': its kernels run there only with {INTERPRETER}"
        )
    if not torch.cuda.is_available():
        if name == "auto":  # nobody wrote that
            asked, others = f"backend {backend!r}", "backends 'cpu' and 'reference' need none"
        else:
            asked, others = f"device {name!r}", "device 'cpu' is always there"
        raise BackendUnavailable(f"{asked}: torch finds no CUDA device; {others}")
    if is_interpreted:
        raise BackendUnavailable(f"device {name!r}: its kernels do not run with {INTERPRETER}")
    _require(backend)
    device = torch.device("cuda" if name == "auto" else name)
    count = torch.cuda.device_count()
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= count:
        raise ConfigError.from_parts(f'a device from "cuda:0" to "cuda:{count - 1}"', repr(name))
    return torch.device("cuda", index)


def _require(backend: str) -> None:
    reason = backends.why_unavailable(backend)
    if reason is not None:
        raise BackendUnavailable(reason)
