"""The checkpoint's chat template, rendered in a sandbox.

A template is a program that came with the weights: it runs in Jinja's immutable sandbox, sees the
messages and the special tokens, and nothing else. Whitespace rules, filters and globals are those
that templates are written for.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sdengine.core.argument import shown
from sdengine.errors import CheckpointError, RequestError
from sdengine.model.tokenizer_settings import template_tokens, tokenizer_settings

__all__ = ["ChatTemplate", "load_chat_template"]

TEMPLATE_FILE = "chat_template.jinja"
WITH_CONTENT = ("system", "developer", "user")
"""Roles whose messages say something; an assistant's may be nothing but calls of tools."""


class GenerationBlock(Extension):
    """`{% generation %} ... {% endgeneration %}` marks assistant text for training; here it is
    plain text.
    """

    tags = {"generation"}  # noqa: RUF012  (the base class declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the block's body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: the template's text.
        special_tokens: variables such as bos_token, as `template_tokens` makes them.
        origin: file it came from, for messages.

    Raises:
        CheckpointError: the template is not valid.
    """

    __slots__ = ("_special_tokens", "_template")

    def __init__(
        self, source: str, special_tokens: Mapping[str, str | list[str]], origin: str = ""
    ) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise CheckpointError.from_parts(
                f"a valid chat template in {origin or 'the checkpoint'}", str(error)
            ) from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """Return the prompt of a conversation; encode it with `add_special_tokens=False`.

        Args:
            messages: role and content each; content is text, or a list of text parts.
            add_generation_prompt: end with the beginning of an assistant message.
            tools: JSON schemas of functions, for templates that know them.
            variables: further variables of this checkpoint's template.

        Raises:
            RequestError: the messages are malformed, or the template refuses them.
        """
        checked = [_checked_message(i, item) for i, item in enumerate(_as_list(messages))]
        try:
            return self._template.render(
                **self._special_tokens,
                messages=checked,
                add_generation_prompt=add_generation_prompt,
                tools=None if tools is None else list(tools),
                documents=None,
                **variables,
            )
        except jinja2.TemplateError as error:
            raise RequestError.from_parts(
                "messages that the chat template accepts", str(error)
            ) from None
        except Exception as error:  # a template is a program: whatever it stumbles over
            raise RequestError.from_parts(
                "messages that the chat template can render", f"{type(error).__name__}: {error}"
            ) from None


def load_chat_template(directory: str | Path) -> ChatTemplate | None:
    """Read chat_template.jinja, or the template in tokenizer_config.json; None when there is
    neither.

    Raises:
        CheckpointError: the template is damaged.
    """
    path = Path(directory)
    settings = tokenizer_settings(path)
    specials = template_tokens(settings)
    file = path / TEMPLATE_FILE
    if file.is_file():
        try:
            return ChatTemplate(file.read_text(encoding="utf-8"), specials, str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError.from_parts(f"{file} to be readable text", str(error)) from None
    source = settings.get("chat_template")
    if isinstance(source, list) and all(isinstance(item, Mapping) for item in source):
        named = [item.get("template") for item in source if item.get("name") == "default"]
        source = named[-1] if named else None
    if source is None:
        return None
    if not isinstance(source, str):
        raise CheckpointError.from_parts(
            f"chat_template in {path / 'tokenizer_config.json'} to be text", shown(source)
        )
    return ChatTemplate(source, specials, str(path / "tokenizer_config.json"))


def _as_list(messages: object) -> list[Any]:
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise RequestError.from_parts(
            'messages to be a list such as [{"role": "user", "content": "Hello"}]', shown(messages)
        )
    if not messages:
        raise RequestError.from_parts("at least one message", "an empty list")
    return list(messages)


def _checked_message(index: int, message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RequestError.from_parts(
            f'messages[{index}] to be an object with "role" and "content"', shown(message)
        )
    content = message.get("content")
    if content is None and message["role"] in WITH_CONTENT:  # most templates would write "None"
        raise RequestError.from_parts(
            f"messages[{index}] of role {message['role']!r} to have content", shown(content)
        )
    if isinstance(content, (list, tuple)):
        content = "\n".join(_text_part(index, part) for part in content)
    elif content is not None and not isinstance(content, str):
        raise RequestError.from_parts(f"messages[{index}].content to be text", shown(content))
    return {**message, "content": content}


def _text_part(index: int, part: object) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text":
        text = part.get("text")
        if isinstance(text, str):
            return text
    raise RequestError.from_parts(
        f'parts of messages[{index}].content to be {{"type": "text", "text": ...}}', shown(part)
    )


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the escaping of HTML characters that Jinja's own filter does."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
