"""The house rules of the source tree: imports point down, no circles, one name per op, small files.

Every import counts: inside functions, under TYPE_CHECKING, relative or absolute.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from sdengine.kernels.launches import STRUCT_OPS
from sdengine.kernels.registry import OP_NAMES, get_op

ROOT = Path(__file__).resolve().parents[1]

# From the ground up. What stands on one floor may use the floors below it, and its floor mates as
# long as there is no circle; drafters, policies, verifiers and controllers never use one another.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("kernels",),
    ("core",),
    ("model", "scheduler", "cache"),
    ("runner",),
    ("drafters", "policies", "verifiers", "controllers"),
    ("factory",),
    ("engine",),
    ("llm", "async_engine"),
    ("train",),
    ("cli", "server"),
    ("__main__",),
)
STRANGERS = {"drafters", "policies", "verifiers", "controllers"}

MAX_FILE_LINES = 500
USUAL_FILE_LINES = 300
MAX_SHARE_OF_LONG_FILES = 0.1
USUAL_FUNCTION_LINES = 33
FORBIDDEN_NAMES = {"utils", "common", "helper", "helpers", "misc"}


@cache
def modules() -> dict[str, Path]:
    """Module name -> file, of everything that is installed."""
    found = {}
    for package, folder in (
        ("sdengine", ROOT / "sdengine"),
        ("sdengine.kernels", ROOT / "kernels"),
    ):
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports_of(name: str, source: str, known: set[str]) -> set[str]:
    """Modules of `known` that a module imports, anywhere in its text."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = name.split(".")[: -node.level]
                base = ".".join([*anchor, base] if base else anchor)
            found |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    nearest = {longest_known(item, known) for item in found}
    return {item for item in nearest if item is not None and item != name}


def longest_known(name: str, known: set[str]) -> str | None:
    """`name` or the nearest package above it that is a module of ours; the bare root is none."""
    while name not in known:
        name, _, last = name.rpartition(".")
        if not last or not name:
            return None
    return None if name == "sdengine" else name


@cache
def graph() -> dict[str, set[str]]:
    """Module -> modules it imports."""
    known = set(modules())
    return {
        name: imports_of(name, path.read_text(encoding="utf-8"), known)
        for name, path in modules().items()
    }


def house_part(module: str) -> str:
    """sdengine.cache.kv_cache -> cache."""
    return module.split(".")[1]


def floor(part: str) -> int:
    for level, parts in enumerate(FLOORS):
        if part in parts:
            return level
    raise AssertionError(f"{part} stands on no floor: add it to FLOORS where it belongs")


def is_allowed(importer: str, imported: str) -> bool:
    """Whether a part may import another."""
    if importer == imported:
        return True
    if {importer, imported} <= STRANGERS:
        return False
    return floor(imported) <= floor(importer)


def test_every_part_of_the_package_has_a_floor() -> None:
    for module in modules():
        if module != "sdengine":
            floor(house_part(module))


def test_imports_point_down() -> None:
    wrong = [
        f"{importer} imports {imported}"
        for importer, found in graph().items()
        if importer != "sdengine"
        for imported in found
        if not is_allowed(house_part(importer), house_part(imported))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_package_itself_imports_nothing() -> None:
    assert graph()["sdengine"] == set()


def test_no_import_circles() -> None:
    assert not circles(graph()), "\n".join(" -> ".join(circle) for circle in circles(graph()))


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Circles of a directed graph, one per back edge of a depth-first walk."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> None:
        if node in path:
            found.append([*path[path.index(node) :], node])
        elif node not in done:
            for child in sorted(edges.get(node, ())):
                walk(child, [*path, node])
            done.add(node)

    for start in sorted(edges):
        walk(start, [])
    return found


def test_the_rules_see_what_they_forbid() -> None:
    known = {
        "sdengine",
        "sdengine.llm",
        "sdengine.core",
        "sdengine.core.config",
        "sdengine.policies",
    }
    hidden = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from sdengine.llm import LLM\n"
        "def f():\n    import sdengine.policies\n"
        "from . import config\n"
    )
    found = imports_of("sdengine.core.x", hidden, known)
    assert found == {"sdengine.llm", "sdengine.policies", "sdengine.core", "sdengine.core.config"}
    assert not is_allowed("core", "llm") and is_allowed("llm", "core")
    assert not is_allowed("drafters", "verifiers") and is_allowed("scheduler", "cache")
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c", "a"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}}) == []


@pytest.mark.parametrize("library", ["transformers", "pybind11", "matplotlib"])
def test_the_engine_runs_without(library: str) -> None:
    """Test oracles and build tools are no run-time dependencies; training may draw."""
    users = [
        name
        for name, path in modules().items()
        if re.search(rf"^\s*(import|from) {library}\b", path.read_text(encoding="utf-8"), re.M)
        and not name.startswith("sdengine.train")
    ]
    assert not users


@pytest.mark.parametrize("library", ["fastapi", "starlette", "uvicorn", "prometheus_client"])
def test_only_the_server_needs_its_libraries(library: str) -> None:
    users = {
        house_part(name)
        for name, path in modules().items()
        if re.search(rf"^\s*(import|from) {library}\b", path.read_text(encoding="utf-8"), re.M)
    }
    assert users == {"server"}


def test_every_package_is_installed() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = set(re.findall(r'"(sdengine[\w.]*)"', text.partition("packages = [")[2]))
    packages = {
        ".".join(path.parent.relative_to(base).parts)
        for folder, base in (("sdengine", ROOT), ("kernels", ROOT))
        for path in (ROOT / folder).rglob("__init__.py")
    }
    packages = {re.sub("^kernels", "sdengine.kernels", name) for name in packages}
    assert packages <= listed
    assert all(f'"{folder}' in text for folder in ("bundled/", "server/page/"))


def test_importing_the_package_is_cheap() -> None:
    code = (
        "import sys, sdengine, sdengine.errors, sdengine.core.config, sdengine.cli.main;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", OP_NAMES)
def test_an_op_has_everything_under_one_name(name: str) -> None:
    for path in (
        f"kernels/{name}.py",
        f"csrc/cpu/{name}.h",
        f"csrc/cpu/{name}.cpp",
        f"kernels/launches/{name}.py" if name in STRUCT_OPS else f"csrc/cpu/bind_{name}.cpp",
        f"tests/kernels/test_{name}.py",
    ):
        assert (ROOT / path).is_file(), f"{path} is missing"
    op = get_op(name)
    assert op.name == name
    assert op.cpu is not None and op.bench_cases is not None
    assert op.check.__doc__, "the contract is the docstring of check"
    assert op.outputs


def test_no_kernel_source_is_forgotten() -> None:
    bound = {p.stem.removeprefix("bind_") for p in (ROOT / "csrc/cpu").glob("bind_*.cpp")}
    others = {"machine_limits", "struct_ops", "acceptance_fit", "row_prices"}
    assert bound - others | set(STRUCT_OPS) == set(OP_NAMES), "kernels/registry.py names every op"
    assert not bound & set(STRUCT_OPS), "one way to hand over arguments"
    cuda = {path.stem for path in (ROOT / "csrc/cuda").glob("*.cu")} - {"library", "graph_branch"}
    assert cuda == set(STRUCT_OPS)


def test_every_op_is_in_the_contract() -> None:
    text = (ROOT / "docs/ops.md").read_text(encoding="utf-8")
    table = text.partition("| op | cpu | triton | cuda |\n|---|---|---|---|\n")[2]
    listed = {}
    for row in table.partition("\n\n")[0].splitlines():
        names, _, *marks = (cell.strip() for cell in row.strip("|").split("|"))
        has = {backend for backend, mark in zip(("triton", "cuda"), marks, strict=True) if mark}
        listed.update({name.strip(): has for name in names.split(",")})
    assert listed == {name: set(get_op(name).backends) for name in OP_NAMES}


# What the Triton kernels share, the microbenchmark cases on a device, and parts of large ones.
TRITON_SHARED = {"__init__", "assembler", "launch", "noise", "overlap", "row_plan", "cases"}
TRITON_SHARED |= {"attention_parts", "attention_rows", "attention_shared"}
TRITON_SHARED |= {"draft_topk_splits", "linear_tiles"}


def test_triton_kernels_have_the_name_of_their_op_a_test_and_a_place_in_the_table() -> None:
    files = {path.stem for path in (ROOT / "kernels/triton").glob("*.py")} - TRITON_SHARED
    assert files == {name for name in OP_NAMES if "triton" in get_op(name).backends}
    for name in files:
        text = (ROOT / f"kernels/triton/{name}.py").read_text(encoding="utf-8")
        assert f"contract: `kernels/{name}.py`" in text, f"{name} does not point at its contract"
        assert "_kernel" in text and "\ndef launches(" in text
        assert (ROOT / f"tests/kernels/triton/test_{name}.py").is_file()


def test_triton_is_imported_by_its_kernels_only() -> None:
    users = {
        name
        for name, path in modules().items()
        if re.search(r"^\s*(import|from) triton\b", path.read_text(encoding="utf-8"), re.M)
    }
    assert users and all(name.startswith("sdengine.kernels.triton.") for name in users)


def sources() -> list[Path]:
    """Everything a human wrote and reads: Python, C++, CUDA, tests."""
    folders = ("sdengine", "kernels", "benchmarks", "examples", "tests", "csrc")
    suffixes = {".py", ".cpp", ".h", ".inl", ".cu", ".cuh"}
    return [
        path
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in suffixes
    ]


def num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_file_is_longer_than_its_hard_limit() -> None:
    long = [str(p.relative_to(ROOT)) for p in sources() if num_lines(p) > MAX_FILE_LINES]
    assert not long


def test_few_files_are_long() -> None:
    files = sources()
    long = [str(p.relative_to(ROOT)) for p in files if num_lines(p) > USUAL_FILE_LINES]
    assert len(long) <= MAX_SHARE_OF_LONG_FILES * len(files), long


def test_nine_of_ten_functions_fit_on_a_screen() -> None:
    lengths = sorted(
        node.end_lineno - node.lineno + 1
        for path in modules().values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno
    )
    assert lengths[int(0.9 * len(lengths))] <= USUAL_FUNCTION_LINES


def test_names_say_what_is_inside() -> None:
    vague = [str(p.relative_to(ROOT)) for p in sources() if p.stem in FORBIDDEN_NAMES]
    assert not vague
