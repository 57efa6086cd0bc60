"""The structs that launches hand over, beside the headers that declare them."""

from __future__ import annotations

import re
from ctypes import Structure
from pathlib import Path

import pytest
import torch

from sdengine.errors import BackendUnavailable
from sdengine.kernels import _cpu
from sdengine.kernels.launches import STRUCT_OPS, launch_of, structs
from sdengine.kernels.programs.program import run_op

HEADERS = Path(__file__).resolve().parents[2] / "csrc" / "include" / "sdengine"
STRUCTS = {
    name: kind
    for name, kind in vars(structs).items()
    if isinstance(kind, type) and issubclass(kind, Structure) and kind is not Structure
}
NUMBERS = {"c_int": "int32_t", "c_long": "int64_t", "c_bool": "bool"}


def declared_fields(name: str) -> list[tuple[str, str]]:
    """(name, type) of a struct's fields in its header; "*" for a pointer."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(HEADERS.glob("*.h")))
    body = re.search(rf"^struct {name} {{\n(.*?)^}};", text, re.M | re.S)
    assert body is not None, f"no header declares {name}"
    plain = re.sub(r"//[^\n]*", "", body[1])
    plain = re.sub(r"SDE_HD.*?\n  }\n", "", plain, flags=re.S)  # member functions
    found = []
    for declaration in plain.split(";")[:-1]:
        kind, _, names = re.sub(r"\s+", " ", declaration.split("=")[0]).strip().rpartition(" ")
        found.append((names, "*" if "*" in kind else kind))
    return found


def laid_out_fields(kind: type[Structure]) -> list[tuple[str, str]]:
    """The same of a ctypes struct."""
    found = []
    for name, field in kind._fields_:
        number = NUMBERS.get(field.__name__, field.__name__)
        found.append((name, "*" if number == "c_void_p" else number))
    return found


@pytest.mark.parametrize("name", STRUCTS)
def test_a_struct_has_the_fields_of_its_header_in_their_order(name: str) -> None:
    enums = {"ExpandRule": "int32_t"}
    declared = [(field, enums.get(kind, kind)) for field, kind in declared_fields(name)]
    assert declared == laid_out_fields(STRUCTS[name])


def test_another_order_is_noticed() -> None:
    swapped = declared_fields("KvCompactArgs")
    swapped[0], swapped[1] = swapped[1], swapped[0]
    assert swapped != laid_out_fields(structs.KvCompactArgs)


def test_code_built_from_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    out = torch.zeros(1, dtype=torch.int64)
    assert all(_cpu.struct_size(op) > 0 for op in STRUCT_OPS)
    assert _cpu.struct_size("embed") == -1
    monkeypatch.setattr(_cpu, "struct_size", lambda op: 16)
    with pytest.raises(BackendUnavailable, match=r"'cpu': timestamp takes 16 bytes .* has 8; reb"):
        run_op("timestamp", out_ns=out)
    assert int(out) == 0


def test_the_extension_itself_takes_no_other_struct() -> None:
    launch = launch_of("timestamp", {"out_ns": torch.zeros(1, dtype=torch.int64)}, 8, "cpu")
    program = _cpu.Program()
    for op, arguments in (("timestamp", b"1234567"), ("embed", bytes(launch.arguments))):
        with pytest.raises(ValueError, match=f"{op}: not a struct that this extension knows"):
            _cpu.append_struct(program, op, arguments)
    assert len(program) == 0
