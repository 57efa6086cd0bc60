"""Builds the CPU extension `sdengine.kernels._cpu` and, where it can be used, the CUDA library
`sdengine/kernels/libsdengine_cuda.so`; everything else is declared in pyproject.toml.

Each source is compiled for the instruction set its name ends in (`_avx2`, `_avx512`,
`_avx512_bf16`), all others for the baseline, so that one binary runs everywhere and chooses at run
time. No torch headers are involved. Without a C++ compiler the package still installs and runs on
the reference backend; `sdengine info` says so.

The CUDA library is built where nvcc and a GPU are found, and with SDENGINE_BUILD_CUDA=1 wherever
nvcc is (0: never); once built, it is kept up to date. Its four architectures take minutes, which a
machine that cannot run them is spared. It links the CUDA runtime statically and needs no torch
headers.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
SOURCES = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc" / "cpu").glob("*.cpp"))
# No contraction: a row must give the same bits in the vector body and in the tail of a loop.
COMMON_FLAGS = [
    "-O3",
    "-std=c++17",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-pthread",
    "-Wall",
]
AVX512_FLAGS = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"]
X86_FLAGS = {
    "_avx2": ["-mavx2", "-mfma", "-mf16c", "-mtune=znver3"],
    "_avx512": AVX512_FLAGS,
    "_avx512_bf16": [*AVX512_FLAGS, "-mavx512bf16"],
}
CUDA_LIBRARY = "libsdengine_cuda.so"
CUDA_SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
# No contraction on the device either: it has to give the bits of the host.
CUDA_FLAGS = [
    "-O3",
    "-std=c++17",
    "-fmad=false",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off",
    "-cudart=static",
]
# What the library is compiled for, oldest first.
CUDA_ARCHITECTURES = ("80", "90a", "100", "120")
IS_X86 = platform.machine() in ("x86_64", "AMD64")


def flags_for(source: str) -> list[str] | None:
    """Compiler flags of one source; None when this machine's compiler cannot build it."""
    for suffix, flags in X86_FLAGS.items():
        if Path(source).stem.endswith(suffix):
            return COMMON_FLAGS + flags if IS_X86 else None
    return COMMON_FLAGS


def dependencies(depfile: Path) -> list[str]:
    """Files named by a make-style dependency file."""
    return depfile.read_text().replace("\\\n", " ").split()[1:]


def is_fresh(target: Path, depfile: Path) -> bool:
    """True when the object is newer than everything it was compiled from."""
    if not (target.exists() and depfile.exists()):
        return False
    made = target.stat().st_mtime
    return all(os.path.exists(d) and os.stat(d).st_mtime <= made for d in dependencies(depfile))


def compile_once(command: list[str], source: str, target: Path) -> None:
    """Compiles a source, unless its object is fresh and was made by the same command."""
    depfile, record = target.with_suffix(".d"), target.with_suffix(".command")
    command = [*command, "-MF", str(depfile), source, "-o", str(target)]
    text = shlex.join(command)
    if record.exists() and record.read_text() == text and is_fresh(target, depfile):
        return
    record.unlink(missing_ok=True)
    subprocess.check_call(command)
    record.write_text(text)


def cuda_compiler() -> str | None:
    """nvcc, when the CUDA library is to be built: asked for, of use, or there from before."""
    wish = os.environ.get("SDENGINE_BUILD_CUDA", "")
    is_useful = Path("/dev/nvidia0").exists() or (ROOT / "kernels" / CUDA_LIBRARY).exists()
    return shutil.which("nvcc") if wish == "1" or (wish != "0" and is_useful) else None


def cuda_targets(nvcc: str) -> list[str]:
    """Flags for those architectures that this toolkit knows."""
    known = subprocess.check_output([nvcc, "--list-gpu-arch"], text=True).split()
    targets = [a for a in CUDA_ARCHITECTURES if f"compute_{a.rstrip('a')}" in known]
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in targets]
    # PTX of the newest serves whatever comes later, that of 9.0 what lies between (11.0). An "a" is
    # for its own architecture alone: such PTX would serve nothing else.
    portable = sorted({"90", targets[-1].rstrip("a")} & {a.rstrip("a") for a in targets}, key=int)
    return flags + [f"-gencode=arch=compute_{a},code=compute_{a}" for a in portable]


class BuildNative(build_ext):
    """Incremental, parallel build with per-file instruction-set flags."""

    def build_extension(self, ext: Pybind11Extension) -> None:
        try:
            self.compile_and_link(ext)
        except (OSError, subprocess.CalledProcessError) as error:
            if os.environ.get("SDENGINE_REQUIRE_CPU_EXTENSION"):
                raise
            self.warn(
                f"the CPU extension was not built ({error}); the reference backend will be used"
            )
        nvcc = cuda_compiler()
        if nvcc is not None:
            self.build_cuda(nvcc, Path(self.get_ext_fullpath(ext.name)).with_name(CUDA_LIBRARY))

    def copy_extensions_to_source(self) -> None:
        """In place: the CUDA library too, which setuptools does not know."""
        super().copy_extensions_to_source()
        built = Path(self.build_lib) / "sdengine" / "kernels" / CUDA_LIBRARY
        if built.exists():
            staged = built.with_suffix(".tmp")
            shutil.copy2(built, staged)
            os.replace(staged, ROOT / "kernels" / CUDA_LIBRARY)

    def build_cuda(self, nvcc: str, library: Path) -> None:
        """Compiles what changed and links it."""
        out_dir = ROOT / "build" / f"cuda-{self.plat_name}"
        out_dir.mkdir(parents=True, exist_ok=True)
        compile_command = [nvcc, *CUDA_FLAGS, *cuda_targets(nvcc)]
        compile_command += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}", "-c", "-MD"]

        def compile_one(source: Path) -> str:
            target = out_dir / (source.stem + ".o")
            compile_once(compile_command, str(source), target)
            return str(target)

        try:
            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                objects = list(pool.map(compile_one, CUDA_SOURCES))
            staged = out_dir / CUDA_LIBRARY
            subprocess.check_call([nvcc, "-shared", "-cudart=static", *objects, "-o", str(staged)])
        except (OSError, subprocess.CalledProcessError) as error:
            if os.environ.get("SDENGINE_BUILD_CUDA"):
                raise
            self.warn(f"the CUDA library was not built ({error}); sdengine will run on the CPU")
            return
        os.replace(staged, library)

    def compile_and_link(self, ext: Pybind11Extension) -> None:
        out_dir = ROOT / "build" / f"cpu-{self.plat_name}-{platform.python_version()}"
        out_dir.mkdir(parents=True, exist_ok=True)
        self.write_op_list(out_dir)
        compiler = os.environ.get("CXX", "c++")
        includes = [
            f"-I{d}" for d in [ROOT / "csrc", ROOT / "csrc" / "include", out_dir, *ext.include_dirs]
        ]
        includes += [f"-I{d}" for d in self.compiler.include_dirs if d not in ext.include_dirs]
        jobs = [(s, flags_for(s)) for s in ext.sources if flags_for(s) is not None]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = list(
                pool.map(lambda job: self.compile_one(compiler, *job, includes, out_dir), jobs)
            )
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.with_suffix(".tmp")
        subprocess.check_call(
            [compiler, "-shared", "-pthread", *map(str, objects), "-o", str(staged)]
        )
        os.replace(staged, target)  # a process that has the old file mapped keeps it

    def compile_one(
        self, compiler: str, source: str, flags: list[str], includes: list[str], out_dir: Path
    ) -> Path:
        target = out_dir / (Path(source).stem + ".o")
        compile_once([compiler, "-c", "-fPIC", *flags, *includes, "-MMD"], source, target)
        return target

    def write_op_list(self, out_dir: Path) -> None:
        """One SDENGINE_OP(name) line per csrc/cpu/bind_<name>.cpp."""
        names = [Path(s).stem[len("bind_") :] for s in SOURCES if Path(s).stem.startswith("bind_")]
        text = "".join(f"SDENGINE_OP({name})\n" for name in names)
        path = out_dir / "ops.inc"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


setup(
    ext_modules=[Pybind11Extension("sdengine.kernels._cpu", SOURCES, cxx_std=17)],
    cmdclass={"build_ext": BuildNative},
)
