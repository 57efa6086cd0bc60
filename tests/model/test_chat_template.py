"""Chat templates render as transformers renders them, inside a sandbox."""

from __future__ import annotations

import json
import shutil

import pytest

from sdengine.errors import CheckpointError, RequestError
from sdengine.model.chat_template import ChatTemplate, load_chat_template
from tests.model.tokenizer_files import make_tokenizer_dir

MESSAGES = [
    {"role": "system", "content": "Be brief & <kind>."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Bye ü"},
]
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}\n"
        "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
        "{% endfor %}\n"
        "{% if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{% endif %}\n"
    ),
    "llama2": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] "
        "| trim }} [/INST]{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
        "{% endif %}{% endfor %}"
    ),
    "loops_and_json": (
        "{% for m in messages %}{% if loop.index0 == 2 %}{% break %}{% endif %}"
        "{{ m | tojson }}{{ {'b': 1, 'a': '<ü>'} | tojson(indent=2) }}{% endfor %}"
        "{{ tools | tojson if tools else 'no tools' }}"
    ),
    "generation": (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
        "{% endfor %}"
    ),
    "indented_blocks": (
        "{% for m in messages %}\n"
        "    {% if m.role == 'user' %}\n"
        "  {{ m.content }}\n"
        "    {% endif %}\n"
        "{% endfor %}\n"
        "end"
    ),
    "namespace": (
        "{%- set ns = namespace(n=0) -%}{%- for m in messages -%}{%- set ns.n = ns.n + 1 -%}"
        "{{- ns.n }}:{{ m.content }};{%- endfor -%}{{- strftime_now('%Y') | length }}"
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_renders_as_transformers(name: str, add_generation_prompt: bool) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(make_tokenizer_dir("byte_level"))
    template = ChatTemplate(TEMPLATES[name], {"bos_token": "<s>", "eos_token": "</s>"})
    tools = [{"name": "f", "parameters": {"x": "é"}}] if name == "loops_and_json" else None
    expected = theirs.apply_chat_template(
        MESSAGES,
        chat_template=TEMPLATES[name],
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        tools=tools,
    )
    text = template.render(MESSAGES, add_generation_prompt=add_generation_prompt, tools=tools)
    assert text == expected


def test_file_wins_over_settings_and_none_is_none(tmp_path) -> None:
    shutil.copytree(make_tokenizer_dir("byte_level"), tmp_path, dirs_exist_ok=True)
    assert load_chat_template(tmp_path) is None
    settings = {"chat_template": "from settings", "bos_token": {"content": "<s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_chat_template(tmp_path).render(MESSAGES) == "from settings"
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }} from file")
    assert load_chat_template(tmp_path).render(MESSAGES) == "<s> from file"


def test_named_templates_give_the_default_one(tmp_path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert load_chat_template(tmp_path).render(MESSAGES) == "d"


@pytest.mark.parametrize(
    "attack",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% for i in range(1000000) %}{% endfor %}",
    ],
)
def test_the_sandbox_holds(attack: str) -> None:
    with pytest.raises(RequestError):
        ChatTemplate(attack, {}).render(MESSAGES)


def test_refusals_of_the_template_reach_the_caller() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(RequestError, match="roles must alternate"):
        template.render(MESSAGES)


@pytest.mark.parametrize(
    ("source", "words"),
    [("{{ 1 / 0 }}", "ZeroDivisionError"), ("{{ '{}'.format() }}", "IndexError")],
)
def test_whatever_a_template_stumbles_over_is_the_request_s(source: str, words: str) -> None:
    with pytest.raises(RequestError, match=f"that the chat template can render, got {words}"):
        ChatTemplate(source, {}).render(MESSAGES)


@pytest.mark.parametrize("named", [[5], ["x"], [None]])
def test_a_damaged_list_of_templates_is_refused(tmp_path, named: list[object]) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    with pytest.raises(CheckpointError, match=r"chat_template in .* to be text, got"):
        load_chat_template(tmp_path)


def test_a_broken_template_is_a_checkpoint_error() -> None:
    with pytest.raises(CheckpointError, match=r"valid chat template in x\.jinja"):
        ChatTemplate("{% if %}", {}, "x.jinja")


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hello", "messages to be a list"),
        ([], "at least one message"),
        ([{"content": "x"}], r"messages\[0\]"),
        ([{"role": "user", "content": 3}], r"messages\[0\]\.content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "parts of"),
    ],
)
def test_malformed_messages_are_refused(messages, words: str) -> None:
    with pytest.raises(RequestError, match=words) as refusal:
        ChatTemplate("{{ messages }}", {}).render(messages)
    assert "chat template" not in str(refusal.value)


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    template = ChatTemplate("{{ messages[0].content }}", {})
    assert template.render([{"role": "user", "content": parts}]) == "a\nb"


@pytest.mark.parametrize("role", ["system", "developer", "user"])
@pytest.mark.parametrize("rest", [{}, {"content": None}])
def test_a_message_without_content_is_not_the_word_none(role: str, rest: dict[str, None]) -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", {})
    with pytest.raises(RequestError, match=rf"messages\[1\] of role '{role}' to have content"):
        template.render([{"role": "user", "content": "x"}, {"role": role, **rest}])
    template.render([{"role": "assistant", **rest}])  # it may have called tools


def test_every_special_token_is_a_variable_as_in_transformers(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    names = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    variables = [*(f"{name}_token" for name in names), "image_token", "audio_token"]
    variables += ["additional_special_tokens", "other_token"]
    settings = {
        "sep_token": "<sep>",
        "cls_token": {"content": "<cls>", "__type": "AddedToken"},
        "mask_token": "<mask>",
        "extra_special_tokens": {"image_token": "<image>"},
        "chat_template": "".join(f"{name}={{{{ {name} }}}};" for name in variables),
    }
    for more in ({}, {"additional_special_tokens": ["<a>", "<b>"]}):
        source = make_tokenizer_dir("byte_level")
        shutil.copytree(source, tmp_path, dirs_exist_ok=True)
        file = tmp_path / "tokenizer_config.json"
        named = json.loads((source / file.name).read_text())
        file.write_text(json.dumps({**named, **settings, **more}))
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
        expected = theirs.apply_chat_template(MESSAGES, tokenize=False)
        text = load_chat_template(tmp_path).render(MESSAGES, add_generation_prompt=False)
        assert text == expected
        assert "sep_token=<sep>;" in text and "image_token=<image>;" in text
