"""Tokenizers: encoding as transformers does, streaming equal to decoding at once, differences
named.
"""

from __future__ import annotations

import ast
import json
import shlex
import shutil
import threading
import time
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from sdengine.errors import CheckpointError, ConfigError, RequestError
from sdengine.model.detokenizer import parse_decoder
from sdengine.model.tokenizer import LONG_TEXT, Tokenizer, load_tokenizer
from tests.model.tokenizer_files import CORPUS, KINDS, make_tokenizer_dir

TEXTS = [
    *CORPUS[:5],
    "",
    " ",
    "  two spaces",
    "\n\ttabs\n",
    "👩‍👩‍👧 family",
    "a<s>b</s>c",
    "x " * 50,
]
any_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def loaded() -> dict[str, Tokenizer]:
    return {kind: load_tokenizer(make_tokenizer_dir(kind)) for kind in KINDS}


@any_kind
def test_encode_and_decode_equal_transformers(kind: str, loaded: dict[str, Tokenizer]) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(make_tokenizer_dir(kind))
    ours = loaded[kind]
    for text in TEXTS:
        for specials in (True, False):
            ids = ours.encode(text, add_special_tokens=specials)
            assert ids == theirs.encode(text, add_special_tokens=specials)
            for skip in (True, False):
                expected = theirs.decode(
                    ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
                )
                assert ours.decode(ids, skip_special_tokens=skip) == expected


@any_kind
def test_a_long_text_has_the_tokens_of_a_short_one(kind: str, loaded: dict[str, Tokenizer]) -> None:
    """Long texts are encoded another way; here by both ways, which have to agree."""
    ours = loaded[kind]
    for text in (LONG_TEXT * "x", "a<s>b</s>c é 🦊\n" * 100, "\n".join(CORPUS) * 4):
        assert len(text) >= LONG_TEXT
        for specials in (True, False):
            one_by_one = ours._backend.encode(text + "x", add_special_tokens=specials)
            assert ours.encode(text + "x", add_special_tokens=specials) == one_by_one.ids


@any_kind
def test_a_long_text_stops_no_other_thread(kind: str, loaded: dict[str, Tokenizer]) -> None:
    """Holding Python's lock all the while, as it once did, makes a gap as long as the work."""
    text = "def f(x): return [y for y in x]\n" * 40_000
    seconds = 0.0

    def encode() -> None:
        nonlocal seconds
        begin = time.perf_counter()
        loaded[kind].encode(text)
        seconds = time.perf_counter() - begin

    thread = threading.Thread(target=encode)
    worst, last = 0.0, time.perf_counter()
    thread.start()
    while thread.is_alive():
        time.sleep(0.001)
        now = time.perf_counter()
        worst, last = max(worst, now - last), now
    assert seconds > 0.05, "the text is too short to tell"
    assert worst < 0.6 * seconds


@any_kind
def test_bytes_of_tokens(kind: str, loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded[kind]
    ids = tokenizer.encode("der Käse für 3,50 €", add_special_tokens=False)
    told = b"".join(map(tokenizer.token_bytes, ids)).decode()
    assert told.lstrip(" ") == tokenizer.decode(ids).lstrip(" ")
    assert tokenizer.token_bytes(tokenizer.vocab_size + 100) == b""
    assert tokenizer.token_bytes(tokenizer.eos_token_id) == b"</s>"


@pytest.mark.parametrize("flags", [{}, {"add_bos_token": False}, {"add_eos_token": True}])
def test_llama_class_places_special_tokens_by_flags(flags: dict[str, bool]) -> None:
    transformers = pytest.importorskip("transformers")
    directory = make_tokenizer_dir("sentencepiece", tokenizer_class="LlamaTokenizer", **flags)
    ours = load_tokenizer(directory)
    theirs = transformers.LlamaTokenizerFast.from_pretrained(directory)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
    has_bos, has_eos = flags.get("add_bos_token", True), flags.get("add_eos_token", False)
    ids = ours.encode("the dog")
    assert (ids[0] == ours.bos_token_id, ids[-1] == ours.eos_token_id) == (has_bos, has_eos)


def declare(directory: Path, settings: dict[str, object]) -> None:
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


MODELS = [{"model_type": "llama"}, {"model_type": "mistral"}, {"model_type": "phi3"}]
OTHER_MODELS = [{"model_type": "qwen2"}, {"tokenizer_class": "LlamaTokenizer"}, {}]


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
@pytest.mark.parametrize("model", MODELS + OTHER_MODELS)
@pytest.mark.parametrize("settings", [{}, {"add_bos_token": False}, {"bos_token": "</s>"}, None])
def test_without_a_class_the_model_decides_as_in_transformers(
    tmp_path, kind: str, model: dict[str, str], settings: dict[str, object] | None
) -> None:
    transformers = pytest.importorskip("transformers")
    shutil.copy(make_tokenizer_dir(kind) / "tokenizer.json", tmp_path)
    if settings is not None:
        declare(tmp_path, settings)
    if model:
        config = {"architectures": ["LlamaForCausalLM"], **model}
        if "model_type" not in config:
            config["model_type"] = "qwen2"
        (tmp_path / "config.json").write_text(json.dumps(config))
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    else:
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    if model.get("model_type") == "qwen2" and kind == "sentencepiece":
        pytest.skip("no tokenizer of that family is one")
    ours = load_tokenizer(tmp_path)
    for text in ("the fox", "a<s>b</s>c", ""):
        assert ours.encode(text) == theirs.encode(text)


def test_a_vocabulary_without_llama_s_tokens_is_left_to_the_file(tmp_path) -> None:
    """As Llama 3's, if all of its settings were lost."""
    text = (make_tokenizer_dir("byte_level") / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace("<s>", "<|begin|>"))
    (tmp_path / "config.json").write_text(json.dumps(MODELS[0]))
    ours = load_tokenizer(tmp_path)
    assert ours.encode("the")[0] == ours.token_id("<|begin|>") == 0


def test_a_class_of_llama_s_knows_its_tokens(tmp_path) -> None:
    shutil.copy(make_tokenizer_dir("sentencepiece") / "tokenizer.json", tmp_path)
    declare(tmp_path, {"tokenizer_class": "LlamaTokenizer"})
    ours = load_tokenizer(tmp_path)
    assert ours.encode("the")[0] == ours.bos_token_id == ours.token_id("<s>")
    declare(tmp_path, {"tokenizer_class": "LlamaTokenizer", "bos_token": None})
    with pytest.raises(CheckpointError, match="bos_token"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("is_split", [True, False])
def test_special_tokens_spelt_out_are_text_where_the_settings_say_so(is_split: bool) -> None:
    transformers = pytest.importorskip("transformers")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "split_special_tokens": is_split}
    directory = make_tokenizer_dir("byte_level", **settings)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    ours = load_tokenizer(directory)
    assert ours.encode("a</s>b") == theirs.encode("a</s>b")
    assert (ours.token_id("</s>") in ours.encode("a</s>b")) is not is_split


@pytest.mark.parametrize("has_declarations", [False, True])
def test_older_files_are_read_as_transformers_reads_them(tmp_path, has_declarations: bool) -> None:
    transformers = pytest.importorskip("transformers")
    shutil.copy(make_tokenizer_dir("sentencepiece") / "tokenizer.json", tmp_path)
    size = load_tokenizer(tmp_path).vocab_size
    settings: dict[str, object] = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}
    if has_declarations:
        ends = {"1": {"content": "<s>", "special": True}, "2": {"content": "</s>", "special": True}}
        settings["added_tokens_decoder"] = ends
    declare(tmp_path, settings)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": "</s>"}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<more>": size}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert ours.encode("a<more>b") == theirs.encode("a<more>b")
    assert (ours.bos_token_id == 2) is not has_declarations
    assert (ours.token_id("<more>") == size) is not has_declarations


def test_older_tokens_without_ids_are_refused(tmp_path) -> None:
    shutil.copy(make_tokenizer_dir("byte_level") / "tokenizer.json", tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<more>": "x"}))
    with pytest.raises(CheckpointError, match=r"added_tokens\.json"):
        load_tokenizer(tmp_path)


@any_kind
def test_no_space_but_a_text_s_first_is_dropped(kind: str, loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded[kind]
    words = tokenizer.encode(" the dog", add_special_tokens=False)
    for tokens in (words, [tokenizer.token_id("a"), *words]):
        stream = tokenizer.detokenizer()
        text = "".join([stream.push([token]) for token in tokens]) + stream.finish()
        assert text == tokenizer.decode(tokens)
    assert text.endswith(" the dog")


@any_kind
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_streamed_text_equals_decoding_at_once(
    kind: str, loaded: dict[str, Tokenizer], data: st.DataObject
) -> None:
    """Random ids, so mostly invalid UTF-8; ids beyond the vocabulary too; cut anywhere."""
    tokenizer = loaded[kind]
    byte_ids = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in (0xE2, 0x82, 0xAC, 0x41, 0xFF)]
    ids = st.integers(0, tokenizer.vocab_size + 3)
    if None not in byte_ids:
        ids |= st.sampled_from(byte_ids)
    if kind == "byte_level":
        ids |= st.sampled_from([tokenizer.token_id(token) for token in ("<tool call>", "é!")])
    tokens = data.draw(st.lists(ids, max_size=40))
    skip = data.draw(st.booleans())
    stream = tokenizer.detokenizer(skip_special_tokens=skip)
    deltas, rest = [], tokens
    while rest:
        count = data.draw(st.integers(1, len(rest)))
        deltas.append(stream.push(rest[:count]))
        rest = rest[count:]
    deltas.append(stream.finish())
    assert "".join(deltas) == tokenizer.decode(tokens, skip_special_tokens=skip)


@any_kind
@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40))
def test_streaming_a_valid_text_never_shows_a_broken_character(
    kind: str, loaded: dict[str, Tokenizer], text: str
) -> None:
    tokenizer = loaded[kind]
    tokens = tokenizer.encode(text, add_special_tokens=False)
    stream = tokenizer.detokenizer(skip_special_tokens=False)
    deltas = [stream.push([token]) for token in tokens]
    assert "".join(deltas).count("\ufffd") <= text.count("\ufffd")
    joined = "".join([*deltas, stream.finish()])
    assert joined == tokenizer.decode(tokens, skip_special_tokens=False)
    if kind == "byte_level":
        assert joined == text


def test_characters_appear_as_soon_as_they_are_complete(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["byte_level"]
    tokens = tokenizer.encode("a🦊b", add_special_tokens=False)
    assert len(tokens) == 6
    stream = tokenizer.detokenizer()
    assert [stream.push([token]) for token in tokens] == ["a", "", "", "", "🦊", "b"]


def test_continued_text_keeps_its_first_space(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["sentencepiece"]
    tokens = tokenizer.encode("the fox", add_special_tokens=False)
    fresh, continued = tokenizer.detokenizer(), tokenizer.detokenizer(continues_text=True)
    assert fresh.push(tokens) + fresh.finish() == "the fox"
    assert continued.push(tokens) + continued.finish() == " the fox"


def test_a_run_of_byte_tokens_is_held_until_it_ends(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["sentencepiece"]
    run = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in "€".encode()]
    fox = tokenizer.encode("fox", add_special_tokens=False)
    stream = tokenizer.detokenizer(continues_text=True)
    assert stream.push(run) == ""
    assert stream.push(fox) == "€ fox"
    stream = tokenizer.detokenizer(continues_text=True)
    assert stream.push([*run, run[0]]) == ""
    assert stream.finish() == "\ufffd" * 4


def test_ids_without_text_have_none(loaded: dict[str, Tokenizer]) -> None:
    for tokenizer in loaded.values():
        stream = tokenizer.detokenizer()
        assert stream.push([tokenizer.vocab_size + 100, tokenizer.eos_token_id]) == ""
        assert stream.finish() == ""
        assert tokenizer.is_special(tokenizer.eos_token_id)
        assert tokenizer.token_text(tokenizer.eos_token_id) == "</s>"


def test_first_differing_token_is_named(loaded: dict[str, Tokenizer]) -> None:
    one = loaded["byte_level"]
    assert one.first_difference(load_tokenizer(make_tokenizer_dir("byte_level"))) is None
    smaller = load_tokenizer(make_tokenizer_dir("byte_level", vocab_size=400))
    with pytest.raises(ConfigError, match=r"token 400 is '.+' and '<tool call>'"):
        one.require_same(smaller)
    with pytest.raises(ConfigError, match=r"token 0 is '<s>' and '<unk>'"):
        one.require_same(loaded["sentencepiece"])


def test_truncation_and_padding_of_the_file_do_not_touch_prompts(tmp_path) -> None:
    backend = tokenizers.Tokenizer.from_file(
        str(make_tokenizer_dir("byte_level") / "tokenizer.json")
    )
    backend.enable_truncation(3)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    plain = load_tokenizer(make_tokenizer_dir("byte_level"))
    for text in ("the quick brown fox jumps", "a"):
        assert load_tokenizer(tmp_path).encode(text) == plain.encode(text)


@pytest.mark.parametrize("text", ["a\ud800b", b"bytes", 3, None])
def test_what_is_no_text_is_refused(text, loaded: dict[str, Tokenizer]) -> None:
    with pytest.raises(RequestError, match="prompt to be"):
        loaded["byte_level"].encode(text)


def test_missing_and_damaged_files_are_refused(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"only tokenizer\.model; save it in the fast format"):
        load_tokenizer(tmp_path)
    odd = tmp_path / 'it\'s my "model"'
    with pytest.raises(CheckpointError) as refusal:
        load_tokenizer(odd)
    *words, code = shlex.split(str(refusal.value).partition("fast format: ")[2])
    assert words == ["python", "-c"]
    constants = [x.value for x in ast.walk(ast.parse(code)) if isinstance(x, ast.Constant)]
    assert constants == [str(odd)] * 2
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(CheckpointError, match="to be a tokenizer"):
        load_tokenizer(tmp_path)


def test_tokens_that_only_the_settings_declare_get_their_id(tmp_path) -> None:
    directory = make_tokenizer_dir("byte_level")
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    size = load_tokenizer(directory).vocab_size
    file = tmp_path / "tokenizer_config.json"
    declared = {str(size): {"content": "<|extra|>", "special": True}}
    file.write_text(json.dumps({"added_tokens_decoder": declared}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("a<|extra|>")[-1] == size
    assert tokenizer.is_special(size)
    declared = {str(size + 7): {"content": "<|extra|>", "special": True}}
    file.write_text(json.dumps({"added_tokens_decoder": declared}))
    with pytest.raises(CheckpointError, match=f"to have id {size + 7}, got {size}"):
        load_tokenizer(tmp_path)


FLAGS = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
TOOL = {"content": "<tool call>", **FLAGS}
END = {"content": "</s>", **FLAGS}


@pytest.mark.parametrize(
    "changes",
    [
        {"added_tokens_decoder": {"420": {**TOOL, "special": True}}},
        {"added_tokens_decoder": {"420": {**TOOL, "special": False, "rstrip": True}}},
        {"additional_special_tokens": ["<tool call>"]},
        {"pad_token": "<tool call>"},
        {"added_tokens_decoder": {"1": {**END, "special": False}}, "eos_token": "<s>"},
    ],
)
def test_the_settings_win_as_in_transformers(tmp_path, changes: dict[str, object]) -> None:
    transformers = pytest.importorskip("transformers")
    shutil.copytree(make_tokenizer_dir("byte_level"), tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ours, text = load_tokenizer(tmp_path), "a <tool call>  b</s>"
    ids = ours.encode(text)
    assert 420 in ids and ids == theirs.encode(text)
    for skip in (True, False):
        expected = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert ours.decode(ids, skip_special_tokens=skip) == expected
        stream = ours.detokenizer(skip_special_tokens=skip)
        assert stream.push(ids) + stream.finish() == expected


def write_settings(directory: Path, settings: dict[str, object]) -> None:
    """A tokenizer with this tokenizer_config.json."""
    shutil.copytree(make_tokenizer_dir("byte_level"), directory, dirs_exist_ok=True)
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("more", [5, "</s>", {"content": "</s>"}])
def test_more_special_tokens_that_are_no_list_are_refused(tmp_path, more: object) -> None:
    write_settings(tmp_path, {"additional_special_tokens": more})
    with pytest.raises(CheckpointError, match=r"additional_special_tokens of .* to be a list"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "declared", [{"x": TOOL}, {"420": {}}, {"420": None}, {"420": {"content": 5}}, ["x"]]
)
def test_damaged_declarations_are_refused(tmp_path, declared: object) -> None:
    write_settings(tmp_path, {"added_tokens_decoder": declared})
    with pytest.raises(CheckpointError, match=r"added_tokens_decoder of tokenizer_config\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "decoder",
    [
        tokenizers.decoders.WordPiece(),
        tokenizers.decoders.Sequence(
            [tokenizers.decoders.Fuse(), tokenizers.decoders.Strip(content=" ", right=1)]
        ),
    ],
)
def test_unknown_decoders_are_refused_by_name(decoder) -> None:
    spec = json.loads(decoder.__getstate__())
    with pytest.raises(
        CheckpointError, match=spec["type"] if "prefix" in spec else "Fuse -> Strip"
    ):
        parse_decoder(spec)
    with pytest.raises(CheckpointError, match="got none"):
        parse_decoder(None)


@pytest.mark.parametrize("flag", [{"add_prefix_space": x} for x in (True, False, None)] + [{}])
@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("is_split_twice", [False, True])
def test_the_settings_say_whether_a_space_is_put_in_front_as_in_transformers(
    tmp_path, flag: dict[str, object], in_file: bool, is_split_twice: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    shutil.copytree(make_tokenizer_dir("byte_level", **flag), tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer.json"
    splitter = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=in_file)
    if is_split_twice:
        stages = [tokenizers.pre_tokenizers.Digits(), splitter]
        splitter = tokenizers.pre_tokenizers.Sequence(stages)
    backend = tokenizers.Tokenizer.from_file(str(file))
    backend.pre_tokenizer = splitter
    backend.save(str(file))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    for text in ("the fox", " the fox", "</s>the fox", ""):
        assert ours.encode(text) == theirs.encode(text)
