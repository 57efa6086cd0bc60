"""vec.h on every instruction set, and the AVX-512 kernels on machines that have none.

SIMDe (https://github.com/simd-everywhere/simde, Debian package libsimde-dev) emulates AVX-512, so
the very sources that a larger machine runs pass the same tests as the others.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sdengine.kernels.cpu_library import load_cpu

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CPU = ROOT / "csrc" / "cpu"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
EMULATED = ["-DSDENGINE_SIMDE", "-include", str(HERE / "avx512_emulated.h"), "-Wno-psabi"]
LEVELS = ("portable", "avx2", "avx512", "avx512_bf16")
ISA_OPS = ("linear", "rms_norm", "silu_and_mul", "rope_kv_append", "tree_attention")
DOT_OPS = ("linear", "tree_attention")
BASELINE = ("program", "thread_pool", "thread_memory", "packed_weight")

needs_simde = pytest.mark.skipif(
    not any(Path(p, "simde/x86/avx512.h").exists() for p in ("/usr/include", "/usr/local/include")),
    reason="no SIMDe headers (Debian: libsimde-dev), AVX-512 cannot be emulated",
)


def native_avx2() -> list[str]:
    """Flags that let the emulation use this machine's own instructions."""
    return [] if load_cpu().detected_isa() == "portable" else AVX2


def compile_file(source: Path, target: Path, *flags: str) -> Path:
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    command = [COMPILER, "-std=c++17", "-O1", "-ffp-contract=off", f"-I{CPU.parent}", *flags]
    built = subprocess.run(
        [*command, str(source), "-o", str(target)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr[-4000:]
    return target


def run_vec(folder: Path, *flags: str) -> str:
    driver = compile_file(HERE / "vec_main.cpp", folder / "driver", *flags)
    result = subprocess.run([str(driver)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_vec_portable(tmp_path: Path) -> None:
    assert "vec: ok, 4 lanes" in run_vec(tmp_path)


def test_vec_avx2(tmp_path: Path) -> None:
    if not native_avx2():
        pytest.skip("this machine has no AVX2")
    assert "vec: ok, 8 lanes" in run_vec(tmp_path, *AVX2)


@needs_simde
def test_vec_avx512_emulated(tmp_path: Path) -> None:
    assert "vec: ok, 16 lanes" in run_vec(tmp_path, *EMULATED, *native_avx2())


@pytest.mark.parametrize("isa", LEVELS)
def test_kernels_of_other_instruction_sets(isa: str) -> None:
    """The kernels' own tests in a process that asks for another set than the default."""
    if isa == load_cpu().selected_isa():
        pytest.skip(f"{isa} is what all tests run on")
    if LEVELS.index(isa) > LEVELS.index(load_cpu().detected_isa()):
        pytest.skip(f"this machine has no {isa}")
    run_op_tests(isa, "-m", "pytest", "-p", "no:cacheprovider")


def test_the_default_is_the_fastest_instruction_set() -> None:
    """Intel's dot products of bfloat16 do half the operations of its multiply-adds."""
    script = "from sdengine.kernels.cpu_library import load_cpu; print(load_cpu().selected_isa())"
    env = {name: value for name, value in os.environ.items() if name != "SDENGINE_ISA"}
    chosen = subprocess.check_output([sys.executable, "-c", script], text=True, env=env).strip()
    is_intel = "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    detected = load_cpu().detected_isa()
    assert chosen == ("avx512" if is_intel and detected == "avx512_bf16" else detected)


def run_op_tests(isa: str, *command: str) -> None:
    """Python with these arguments, and the files of the kernels' tests after them."""
    files = [str(ROOT / "tests" / "kernels" / f"test_{op}.py") for op in ISA_OPS]
    result = subprocess.run(
        [sys.executable, *command, *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SDENGINE_ISA": isa},
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


FORCED_ISA = """
#include <cstdlib>
#include <cstring>
#include "cpu/cpu_features.h"
namespace sdengine {
Isa detected_isa() { return Isa::kAvx512Bf16; }
Isa selected_isa() {
  return std::strcmp(std::getenv("SDENGINE_ISA"), "avx512") ? detected_isa() : Isa::kAvx512;
}
Isa fastest_isa() { return detected_isa(); }
bool starts_two_dots() { return false; }
Isa selected_vector_isa() { return Isa::kAvx512; }
const char* isa_name(Isa isa) { return isa == Isa::kAvx512 ? "avx512" : "avx512_bf16"; }
}
"""

RUN_TESTS = """
import importlib.util, os, sys, pytest
spec = importlib.util.spec_from_file_location("sdengine.kernels._cpu", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
import sdengine.kernels
sdengine.kernels._cpu = sys.modules["sdengine.kernels._cpu"] = module
assert module.selected_isa() == os.environ["SDENGINE_ISA"]
sys.exit(pytest.main(["-p", "no:cacheprovider", *sys.argv[2:]]))
"""


def write_module(folder: Path) -> Path:
    """All of pybind11 in one source: its templates take longer to compile than the kernels."""
    (folder / "ops.inc").write_text("".join(f"SDENGINE_OP({op})\n" for op in ISA_OPS))
    parts = ["bindings", *(f"bind_{op}" for op in ISA_OPS)]
    includes = "".join(f'#include "cpu/{part}.cpp"\n' for part in parts)
    (folder / "module.cpp").write_text(FORCED_ISA + includes)
    return folder / "module.cpp"


def build_emulated_extension(folder: Path) -> Path:
    """The extension with the ops of ISA_OPS, their AVX-512 variant emulated and always chosen."""
    import pybind11

    python = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    common = ["-c", "-fPIC", "-fvisibility=hidden", f"-I{folder}", *python]
    emulated = [*common, *EMULATED, *native_avx2()]
    jobs = [(write_module(folder), common)]
    jobs += [(CPU / f"{op}_avx512.cpp", emulated) for op in ISA_OPS]
    dots = [*emulated, "-DSDENGINE_SIMDE_BF16"]
    jobs += [(CPU / f"{op}_avx512_bf16.cpp", dots) for op in DOT_OPS]
    jobs += [(CPU / f"{name}.cpp", common) for name in BASELINE]
    for op in ISA_OPS:
        jobs += [(CPU / f"{op}.cpp", common), (CPU / f"{op}_portable.cpp", common)]
        jobs += [(CPU / f"{op}_avx2.cpp", [*common, *AVX2])]

    def compile_job(job: tuple[Path, list[str]]) -> str:
        return str(compile_file(job[0], folder / f"{job[0].stem}.o", *job[1]))

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_job, jobs))
    target = folder / f"_cpu{sysconfig.get_config_var('EXT_SUFFIX')}"
    assert COMPILER is not None
    subprocess.check_call([COMPILER, "-shared", "-pthread", *objects, "-o", str(target)])
    return target


@needs_simde
@pytest.mark.slow
def test_avx512_kernels_emulated(tmp_path: Path) -> None:
    """The kernels' own tests, run against the emulated AVX-512 build."""
    extension = build_emulated_extension(tmp_path)
    for isa in ("avx512", "avx512_bf16"):
        run_op_tests(isa, "-c", RUN_TESTS, str(extension))
