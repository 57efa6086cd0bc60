"""The device ops as operators of torch: importing this module registers `torch.ops.sdengine.<op>`.

For callers that trace: torch.compile, torch.export, fake tensors. The operators write into their
arguments, say so in their schemas, and return nothing. Pass arguments by keyword; a struct of
tensors is passed field by field (`batch` of tree_attention as `batch_tokens`, `batch_positions`,
...), a weight as its row-major matrix, whose `activation` says whether it stacks gate and up. What
an operator writes must be given, None where the op may go without (`scratch`). No two tensors may
overlap.

On CUDA tensors an operator launches the kernel of the backend that `device_backend` names, on the
current stream. On CPU tensors it runs the reference: the CPU's own kernels are launched by programs
(`make_program("cpu")`), which take packed weights and a thread pool. On meta and fake tensors the
contract is checked, and nothing runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, get_args, get_type_hints

import torch

from sdengine.kernels.dense_weight import DenseWeight
from sdengine.kernels.move_plan import MovePlan
from sdengine.kernels.registry import OP_NAMES, get_op
from sdengine.kernels.row_batch import RowBatch
from sdengine.kernels.sampling_tables import SamplingTables
from sdengine.kernels.spec import Args, Op
from sdengine.kernels.token_tree import DraftTree, TokenTree
from sdengine.kernels.verdict import Verdict

NAMESPACE = "sdengine"
# Which kernel serves an operator on a GPU, where an op has both: the CUDA library's for the tree
# ops and what belongs to them, Triton's for the rest.
PREFERENCE = ("cuda", "triton")
STRUCTS = (RowBatch, DraftTree, TokenTree, Verdict, MovePlan, SamplingTables)
SCHEMA_TYPES = {torch.Tensor: "Tensor", int: "int", float: "float", bool: "bool", str: "str"}
WORKING_MEMORY = ("scratch", "counters")  # written by kernels although no output


def device_backend(op: Op) -> str | None:
    """The backend whose kernel an operator launches on a GPU; None without one."""
    return next((backend for backend in PREFERENCE if backend in op.backends), None)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument of an op.

    Args:
        name: of the op's argument.
        struct: the dataclass that it is passed as, or None.
        schema: type in an operator's schema, of each field where there is a struct.
        is_mutated: whether a launch may write it.
        default: as schema text, or None where it must be given.
    """

    name: str
    struct: type | None
    schema: str
    is_mutated: bool
    default: str | None

    def flat_names(self) -> list[str]:
        """The operator's arguments that stand for this one."""
        if self.struct is None:
            return [self.name]
        return [f"{self.name}_{field.name}" for field in fields(self.struct)]


def parameters_of(op: Op) -> list[Parameter]:
    """The arguments of an op, read off its contract."""
    hints = get_type_hints(op.check)
    written = {*op.outputs, *WORKING_MEMORY}
    return [
        parameter_of(name, hints[name], name in written, given.default)
        for name, given in inspect.signature(op.check).parameters.items()
    ]


def parameter_of(name: str, hint: Any, is_mutated: bool, default: Any) -> Parameter:
    """The argument `name` of type `hint`."""
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]
    may_be_none = NoneType in get_args(hint)
    struct = next((kind for kind in kinds if kind in STRUCTS), None)
    is_tensor = struct is not None or DenseWeight in kinds
    kind = "Tensor" if is_tensor else SCHEMA_TYPES[kinds[0]]
    optional = "?" if may_be_none else ""
    # An argument that may be None has to be given to an op; an operator may leave it out, but for
    # those that it writes: torch 2.11 does not find them among arguments that were left out.
    given = None if default is inspect.Parameter.empty and not may_be_none else default
    must_give = is_mutated or (given is None and not may_be_none)
    text = None if must_give else schema_value(given)
    return Parameter(name, struct, kind + optional, is_mutated, text)


def schema_value(value: Any) -> str:
    """A default as a schema writes it."""
    if isinstance(value, str):
        return f'"{value}"'
    return "None" if value is inspect.Parameter.empty else str(value)


def in_schema_order(parameters: list[Parameter]) -> list[Parameter]:
    """What must be given comes first."""
    return sorted(parameters, key=lambda parameter: parameter.default is not None)


def schema_of(parameters: list[Parameter]) -> str:
    """The operator's schema, without its name."""
    items, num_mutated = [], 0
    for parameter in in_schema_order(parameters):
        default = "" if parameter.default is None else f"={parameter.default}"
        for name in parameter.flat_names():
            kind = parameter.schema
            if parameter.is_mutated:
                kind = kind.replace("Tensor", f"Tensor(a{num_mutated}!)")
                num_mutated += 1
            items.append(f"{kind} {name}{default}")
    return f"({', '.join(items)}) -> ()"


def flatten(op: str, args: Args) -> Args:
    """Arguments of an operator from those of its op."""
    flat: Args = {}
    for parameter in parameters_of(get_op(op)):
        if parameter.name not in args and not parameter.is_mutated:
            continue
        value = args.get(parameter.name)
        if isinstance(value, DenseWeight):
            flat[parameter.name] = value.matrix
        elif parameter.struct is None or value is None:
            flat |= dict.fromkeys(parameter.flat_names(), value)
        else:
            names = (field.name for field in fields(parameter.struct))
            flat |= {f"{parameter.name}_{name}": getattr(value, name) for name in names}
    return flat


def unflatten(op: str, flat: Args) -> Args:
    """Arguments of an op from those of its operator.

    Raises:
        ValueError: Some fields of a struct are given and others are not.
    """
    args: Args = {}
    for parameter in parameters_of(get_op(op)):
        values = [flat[name] for name in parameter.flat_names() if name in flat]
        if parameter.struct is None:
            args |= dict.fromkeys([parameter.name], *values) if values else {}
        elif all(value is None for value in values):
            args[parameter.name] = None
        elif None in values or len(values) < len(parameter.flat_names()):
            expected = ", ".join(parameter.flat_names())
            raise ValueError(f"{op}: {parameter.name}: expected all of {expected}, or none")
        else:
            args[parameter.name] = parameter.struct(*values)
    if op == "linear":
        is_gated = flat.get("activation") == "silu_gate"
        args["weight"] = DenseWeight(args["weight"], is_gate_up=is_gated)
    return args


def implementation(op: str, run: Callable[[Op], Callable[..., None]]) -> Callable[..., None]:
    """An operator's function: rebuilds the op's arguments, checks them, runs what is chosen."""
    parameters = in_schema_order(parameters_of(get_op(op)))
    names = [name for parameter in parameters for name in parameter.flat_names()]

    def call(*values: Any, **flat: Any) -> None:
        spec = get_op(op)
        args = unflatten(op, {**dict(zip(names, values)), **flat})
        spec.check(**args)
        run(spec)(**args)

    return call


def register(op: str, backend: str) -> Any:
    """Defines `torch.ops.sdengine.<op>` and returns it."""
    parameters = parameters_of(get_op(op))
    mutated = [name for p in parameters if p.is_mutated for name in p.flat_names()]
    operator = torch.library.custom_op(
        f"{NAMESPACE}::{op}",
        implementation(op, lambda spec: spec.backends[backend]),
        mutates_args=mutated,
        device_types="cuda",
        schema=schema_of(parameters),
    )
    operator.register_kernel("cpu", implementation(op, lambda spec: spec.reference))
    operator.register_fake(implementation(op, lambda _: lambda **_args: None))
    return operator


OPERATORS = {
    name: register(name, backend)
    for name in OP_NAMES
    if (backend := device_backend(get_op(name))) is not None
}
