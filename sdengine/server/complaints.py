"""What is wrong with a body, in the words of this project instead of pydantic's.

Every message says what was expected and what came, and repeats no more than a line of what came.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["Complaint", "complaint", "shown"]

MAX_SHOWN_CHARS = 80
MAX_SHOWN_BITS = 128
MAX_NAME_CHARS = 60
"""Of a part of a field's path: clients choose the names of fields that nobody knows."""
CUSTOM_ERRORS = ("either", "field")
"""Kinds that `sdengine.server.protocol` raises: their messages are whole."""
EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "float_type": "a number",
    "int_type": "an integer",
    "list_type": "a list",
    "model_type": "an object",
    "string_type": "a string",
}
"""By pydantic's kind of error, in JSON's words."""
PYDANTIC_EXPECTED = "Input should be "


class Complaint(NamedTuple):
    """What is wrong with a body.

    Args:
        message: what was expected and what came, behind the field's name.
        field: the path to what is at fault, None for the body itself.
    """

    message: str
    field: str | None


class ShortRepr(reprlib.Repr):
    """Representations for which no more is looked at than is shown, in the client's words: null and
    true, not None and True."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxdict = 2, 4, 3
        self.maxstring = self.maxother = 40

    def repr_int(self, value: int, level: int) -> str:
        """As ever; Python writes no integers of more than some thousand digits."""
        bits = value.bit_length()
        return repr(value) if bits < MAX_SHOWN_BITS else f"an integer of {bits} bits"

    def repr_float(self, value: float, level: int) -> str:
        """As ever; what is not finite in the words in which it came."""
        return json.dumps(value)

    def repr_bool(self, value: bool, level: int) -> str:
        """In JSON's words."""
        return json.dumps(value)

    def repr_NoneType(self, value: None, level: int) -> str:
        """In JSON's word."""
        return json.dumps(value)


SHORT_REPR = ShortRepr()


def shown(value: Any) -> str:
    """A short text of what came, however large it is."""
    text = SHORT_REPR.repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[: MAX_SHOWN_CHARS - 3]}..."


def complaint(item: Mapping[str, Any]) -> Complaint:
    """One of pydantic's errors in our words.

    Args:
        item: of `ValidationError.errors()`.
    """
    kind, context = item["type"], item.get("ctx", {})
    if kind == "json_invalid":
        reason = str(context.get("error", item["msg"]))
        return Complaint(f"expected a body of JSON, got {reason}", None)
    path = [str(part) for part in item["loc"] if part != "body"]
    if "field" in context:  # of the object that `path` leads to
        path.append(context["field"])
    name = ".".join(f"{part:.{MAX_NAME_CHARS}}" for part in path)
    if kind == "extra_forbidden":
        return Complaint(f"{name!r} is not a field that this server knows", name)
    message = _message(kind, context, item)
    return Complaint(f"{name}: {message}", name) if name else Complaint(message, None)


def _message(kind: str, context: Mapping[str, Any], item: Mapping[str, Any]) -> str:
    if kind in CUSTOM_ERRORS:
        return str(item["msg"])
    if kind == "missing":  # what came is the object around it
        return "expected this field, got none"
    expected = _expected(kind, context, item["msg"])
    return item["msg"] if expected is None else f"expected {expected}, got {shown(item['input'])}"


def _expected(kind: str, context: Mapping[str, Any], pydantic_message: str) -> str | None:
    """What was expected; None where pydantic does not say it in a way that is known here."""
    if kind in EXPECTED:
        return EXPECTED[kind]
    if kind in ("too_short", "string_too_short"):
        least, what = context["min_length"], "item" if kind == "too_short" else "character"
        return f"at least one {what}" if least == 1 else f"at least {least} {what}s"
    if pydantic_message.startswith(PYDANTIC_EXPECTED):
        return pydantic_message.removeprefix(PYDANTIC_EXPECTED)
    return None
