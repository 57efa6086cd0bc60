"""Backends: what is usable, why the rest is not, and that nothing is loaded before it is used."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sdengine.errors import BackendUnavailable
from sdengine.kernels import backends
from sdengine.kernels.programs.program import make_program, run_op


def test_without_the_package_triton_is_refused_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "triton is not installed" in str(backends.available()["triton"])
    with pytest.raises(BackendUnavailable, match="triton is not installed"):
        make_program("triton")


def test_without_a_device_or_the_interpreter_triton_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "no CUDA device" in str(backends.available()["triton"])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backends.available()["triton"] is None


def test_without_a_sound_assembler_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is compiled."""
    pytest.importorskip("triton")
    from sdengine.kernels.triton import assembler

    def refuse() -> None:
        raise BackendUnavailable("backend 'triton': expected a ptxas of CUDA 12.9 or newer")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(assembler, "use_sound_assembler", refuse)
    assert "expected a ptxas" in str(backends.why_unavailable("triton"))


@pytest.mark.parametrize(
    ("usual", "newer", "found"),
    [
        ("13.0", None, "13.0"),
        ("12.9", "13.0", "12.9"),
        ("12.8", "12.9", "12.9"),
        (None, "12.9", "12.9"),
        ("12.8", None, r"or newer, .* got 12\.8 \(.*\); set"),
        ("12.6", "12.8", r"got 12\.6 \(.*\) and 12\.8 \(.*\); set"),
        (None, None, "got none; set"),
    ],
)
def test_of_the_assemblers_that_are_there_a_sound_one_is_used(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    usual: str | None,
    newer: str | None,
    found: str,
) -> None:
    """Not every Triton brings both."""
    triton = pytest.importorskip("triton")
    from sdengine.kernels.triton import assembler

    nvidia = triton.knobs.nvidia
    use_sound_assembler = assembler.use_sound_assembler.__wrapped__  # whatever was found before
    with nvidia.scope():
        for name, version in (("ptxas", usual), ("ptxas_blackwell", newer)):
            tool = tmp_path / name
            if version is not None:
                tool.write_text(f"#!/bin/sh\necho release {version}\n")
                tool.chmod(0o755)
            monkeypatch.setattr(vars(type(nvidia))[name], "default_path", str(tool))
            monkeypatch.delenv(f"TRITON_{name.upper()}_PATH", raising=False)
        if found.endswith("set"):
            with pytest.raises(BackendUnavailable, match=found):
                use_sound_assembler()
        else:
            use_sound_assembler()
            assert nvidia.ptxas.version == found


def test_a_triton_that_knows_one_assembler_is_asked_for_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As older ones do."""
    triton = pytest.importorskip("triton")
    from sdengine.kernels.triton import assembler

    ptxas = SimpleNamespace(path="own", version="12.8")
    monkeypatch.setattr(triton.knobs, "nvidia", SimpleNamespace(ptxas=ptxas))
    use_sound_assembler = assembler.use_sound_assembler.__wrapped__
    with pytest.raises(BackendUnavailable, match=r"got 12\.8 \(own\); set TRITON_PTXAS_PATH"):
        use_sound_assembler()
    ptxas.version = "12.9"
    use_sound_assembler()


def test_triton_is_imported_at_the_first_launch_only() -> None:
    code = (
        "import sys; from sdengine.kernels.registry import OP_NAMES, get_op;"
        "import sdengine.kernels.triton; ops = [get_op(name) for name in OP_NAMES];"
        "assert any('triton' in op.backends for op in ops) and 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_op_without_a_triton_kernel_says_what_exists() -> None:
    pytest.importorskip("triton")
    with pytest.raises(
        BackendUnavailable, match=r"'timestamp' has no triton kernel; .*: reference"
    ):
        run_op("timestamp", "triton", out_ns=torch.zeros(1, dtype=torch.int64))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_cuda_is_refused_and_says_so() -> None:
    with pytest.raises(BackendUnavailable, match=r"backend 'cuda': .*(library|device)"):
        make_program("cuda")


def test_a_cuda_program_runs_the_cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "why_unavailable", lambda name: None)
    program = make_program("cuda")
    with pytest.raises(BackendUnavailable, match=r"'embed' has no cuda kernel; .*, cpu, triton"):
        run_op("embed", "cuda", **embed_args())
    args = gather_args()
    program.launch("gather_pending", **args)
    with pytest.raises(ValueError, match=r"gather_pending: .*on cuda, got cpu"):
        program.replay()


def embed_args() -> dict[str, torch.Tensor]:
    return {
        "tokens": torch.zeros(2, dtype=torch.int32),
        "weight": torch.randn(5, 4),
        "out": torch.empty(2, 4),
        "num_rows": torch.tensor([2], dtype=torch.int32),
    }


def gather_args() -> dict[str, torch.Tensor]:
    def ints(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int32)

    return {
        "history": ints(1, 5),
        "computed_lens": ints(1),
        "pending_lens": ints(1),
        "num_seqs": ints(1),
        "pending_tokens": ints(4),
        "cu_pending": ints(2),
    }


def test_an_unknown_backend_lists_those_that_exist() -> None:
    with pytest.raises(
        BackendUnavailable, match="one of reference, cpu, triton, cuda, got 'metal'"
    ):
        make_program("metal")
