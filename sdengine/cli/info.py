"""`sdengine info`: what this installation can run here, and why the rest is not available."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdengine import __version__
from sdengine.cli.terminal import palette_for
from sdengine.core.config import BACKENDS
from sdengine.core.env import SECRETS, VARIABLES, choose_num_threads, read_environment, usable_cores

__all__ = ["HELP", "add_arguments", "run"]

HELP = "show backends, CPU features, GPUs, bundled models and versions"
LIBRARIES = ("torch", "numpy", "safetensors", "tokenizers", "jinja2", "rich", "triton")
CPU_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512dq",
    "avx512_bf16",
    "amx_bf16",
)

Line = tuple[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no arguments of its own."""


def run(args: argparse.Namespace) -> int:
    """Entry of the command.

    Raises:
        ConfigError: an SDENGINE_ environment variable is unknown or unusable.
    """
    read_environment()
    palette = palette_for(sys.stdout)
    parts = {
        "backends": list(backend_lines()),
        "cpu": list(cpu_lines()),
        "gpus": list(gpu_lines()),
        "bundled models": list(model_lines()),
        "environment": list(environment_lines()),
        "versions": list(version_lines()),
    }  # all of them before the first is printed: what is unusable is an error and nothing else
    for title, lines in parts.items():
        print(palette.strong(title))
        for name, value in lines:
            print(f"  {name:<22} {value}".rstrip())
    return 0


def backend_lines() -> Iterator[Line]:
    """Every backend: available, or the reason it is not."""
    from sdengine.kernels.backends import available

    reasons = available()
    for name in BACKENDS:
        reason = reasons.get(name, "this version has no kernels for it")
        yield name, "available" if reason is None else f"not available: {reason}"
    yield "engine on a CPU", "cpu" if reasons["cpu"] is None else "reference (slow)"
    yield "engine on a GPU", engine_on_gpu()


def engine_on_gpu() -> str:
    """What device="cuda" runs on, or why it cannot."""
    import torch

    from sdengine.errors import BackendUnavailable
    from sdengine.kernels.programs.device_program import usable_kernels

    try:
        kernels = usable_kernels("triton", torch.device("cuda", 0))
    except BackendUnavailable as error:
        return f"not available: {error}"
    return f'{" and ".join(kernels)}, with device="cuda"; so far tried on an H200'


def cpu_lines() -> Iterator[Line]:
    """Processor, the instruction set the kernels chose, and threads."""
    from sdengine.errors import BackendUnavailable
    from sdengine.kernels.cpu_library import load_cpu

    model, flags = processor()
    yield "processor", model
    if flags is not None:
        yield "features", " ".join(flags) or "none that the kernels use"
    try:
        native = load_cpu()
    except BackendUnavailable:
        yield "kernels use", "nothing: the compiled extension is missing"
    else:
        yield "kernels use", isa_text(native)
    yield "usable cores", str(usable_cores())
    environment = read_environment()
    origin = " (SDENGINE_NUM_THREADS)" if environment.num_threads else ""
    yield "threads", f"{choose_num_threads(None, environment)}{origin}"


def isa_text(native: Any) -> str:
    """The instruction set in use, and why it is not the largest that the machine has.

    Args:
        native: the compiled extension.
    """
    used, fastest, largest = native.selected_isa(), native.fastest_isa(), native.detected_isa()
    if used == largest:
        return kernels_isa(native)
    if used == fastest:
        return f"{used} (faster here than {largest}, which this machine has, too)"
    return f"{used} (this machine has {fastest})"


def kernels_isa(native: Any) -> str:
    """The instruction set in use, and whether `linear` counts on two dot products a cycle.

    Args:
        native: the compiled extension.
    """
    used = str(native.selected_isa())
    return f"{used}, two dots" if used == "avx512_bf16" and native.starts_two_dots() else used


def gpu_lines() -> Iterator[Line]:
    """CUDA devices that torch sees, or why there are none."""
    import torch

    if torch.version.cuda is None:
        yield "none", "this torch is a CPU build"
    elif not torch.cuda.is_available():
        yield "none", "torch finds no usable CUDA device"
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        size = f"{gpu.total_memory / 2**30:.0f} GiB, compute capability {gpu.major}.{gpu.minor}"
        yield f"cuda:{index}", f"{gpu.name}, {size}"


def model_lines() -> Iterator[Line]:
    """Bundled pairs with the size of their weights."""
    from sdengine.model.registry import BUNDLED_DIR, bundled_pairs

    root = read_environment().bundled_dir or BUNDLED_DIR
    pairs = bundled_pairs(root)
    if not pairs:
        yield "none", "no pair is installed"
    for name in pairs:
        yield name, ", ".join(model_sizes(root / name))


def model_sizes(pair: Path) -> Iterator[str]:
    """Parameters and bytes of a pair's target and draft."""
    manifest = read_manifest(pair)
    for role in ("target", "draft"):
        files = sorted((pair / role).glob("*.safetensors"))
        if files:
            size = sum(file.stat().st_size for file in files)
            yield f"{role} {manifest_parameters(manifest or {}, role)}{size / 1e6:.1f} MB"
    if manifest is None:
        yield "damaged MANIFEST.json"
    elif manifest.get("is_provisional"):
        yield "provisional weights"


def manifest_parameters(manifest: dict, role: str) -> str:
    """ "6.4M parameters in " when the manifest says so."""
    count = manifest.get("parameters", {}).get(role)
    return f"{count / 1e6:.1f}M parameters in " if count else ""


def read_manifest(pair: Path) -> dict | None:
    """MANIFEST.json of a pair; empty when there is none, None when it is damaged."""
    try:
        manifest = json.loads((pair / "MANIFEST.json").read_text(encoding="utf-8"))
        counts = manifest.get("parameters", {}).values()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return manifest if all(isinstance(count, int) for count in counts) else None


def environment_lines() -> Iterator[Line]:
    """Every environment variable that sdengine reads: its value, or what it is for."""
    for name, meaning in VARIABLES.items():
        value = os.environ.get(name)
        if value is not None and name in SECRETS:
            value = "(set, not shown)"
        yield name, f"= {value}" if value is not None else f"not set: {meaning}"


def version_lines() -> Iterator[Line]:
    """sdengine, Python and the libraries it stands on."""
    import platform
    from importlib import metadata

    yield "sdengine", __version__
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for library in LIBRARIES:
        try:
            yield library, metadata.version(library)
        except metadata.PackageNotFoundError:
            yield library, "not installed"


def processor() -> tuple[str, list[str] | None]:
    """Name of the processor and those of its features that the kernels ask for; None where the
    system does not list them.
    """
    import platform

    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine(), None
    fields = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in text.splitlines())
    }
    flags = set(fields.get("flags", "").split())
    name = fields.get("model name") or platform.processor() or platform.machine()
    return name, [flag for flag in CPU_FLAGS if flag in flags]
