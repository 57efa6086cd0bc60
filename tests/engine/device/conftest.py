"""Engines whose buffers lie in a device's memory, with a CPU in the GPU's place.

    interpreted    Triton kernels in the interpreter; ops without one as the CPU's kernels
    on_threads     Triton kernels in the interpreter; the CUDA library on the CPU's threads
    on_host        every op as the CPU's kernel, `linear` as the reference: fast, and as far from
                   the host's memory as a GPU

The interpreter takes some 20 ms for one program of a kernel: models, prompts and answers are tiny.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from sdengine.engine import Engine
from sdengine.kernels import cuda_library
from sdengine.kernels.programs.device_program import StagedProgram, run_on_host
from sdengine.kernels.spec import Op
from tests.engine.conftest import tiny
from tests.kernels.triton.interpreter import patched_interpreter
from tests.model.checkpoints import make_checkpoint
from tests.native.cuda_threads import threads_library

pytest.importorskip("triton", reason="the package triton is not installed")

TINY: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}

MakePair = Callable[..., Engine]


def tiny_model(num_layers: int = 2) -> str:
    """A model that the interpreter can run; with 1 layer a draft for the one with 2."""
    return str(make_checkpoint(num_hidden_layers=num_layers, **TINY))


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton's interpreter, made fit for engines."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: its kernels are not interpreted")
    with patched_interpreter(monkeypatch, checks_overflow=False):
        yield


@pytest.fixture
def on_threads(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA library on the CPU's threads in place of the real one."""
    library = threads_library()
    monkeypatch.setattr(cuda_library, "load_cuda", lambda: library)


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU's kernels on a device's buffers and programs."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: its memory is not the host's")

    use_host_kernels(monkeypatch)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # products this small cost 85 ms each on a machine that is busy
    yield
    torch.set_num_threads(threads)


def use_host_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the programs of devices run the CPU's kernels."""

    def kernel(program: StagedProgram, spec: Op) -> Callable[..., None]:
        if spec.name == "linear":  # the CPU's kernel takes packed weights only
            return spec.reference
        return lambda **args: run_on_host(spec, **args)

    monkeypatch.setattr(StagedProgram, "_kernel", kernel)


@pytest.fixture
def make_tiny(engines: list[Engine]) -> MakePair:
    """Builds engines over `tiny_model`s, with a draft where trees are wanted from one."""

    def make(backend: str, **settings: Any) -> Engine:
        speculation = settings.get("speculation")
        has_draft = speculation is not None and speculation.needs_draft_model
        draft = tiny_model(1) if has_draft else None
        settings = {"max_model_len": 64, "max_num_seqs": 2, **settings, "backend": backend}
        engine = Engine(tiny_model(), draft=draft, **tiny(settings))
        engines.append(engine)
        return engine

    return make
