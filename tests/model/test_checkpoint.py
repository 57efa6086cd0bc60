"""Reading checkpoints: every canonical weight is right, every kind of damage is refused by name."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdengine.errors import CheckpointError
from sdengine.model import checkpoint as checkpoint_module
from sdengine.model.checkpoint import open_checkpoint
from sdengine.model.safetensors_file import SafetensorsFile
from tests.model.checkpoints import FAMILIES, make_checkpoint

WEIGHTS = "model.safetensors"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the plain Llama checkpoint that a test may damage."""
    shutil.copytree(make_checkpoint("llama"), tmp_path / "model")
    return tmp_path / "model"


def edit_weights(directory: Path, change) -> None:
    weights = safetensors.torch.load_file(directory / WEIGHTS)
    change(weights)
    safetensors.torch.save_file(weights, directory / WEIGHTS)


def edit_header(file: Path, change) -> None:
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    text = change(raw[8 : 8 + length].decode())
    file.write_bytes(struct.pack("<Q", len(text)) + text.encode() + raw[8 + length :])


@pytest.mark.parametrize("family", FAMILIES)
def test_canonical_weights_are_the_stored_ones(family: str) -> None:
    directory = make_checkpoint(family)
    stored = safetensors.torch.load_file(directory / WEIGHTS)
    checkpoint = open_checkpoint(directory)
    shapes = checkpoint.config.weight_shapes()
    assert checkpoint.names() == list(shapes)
    weights = {name: checkpoint.weight(name).clone() for name in checkpoint.names()}
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == shapes
    assert all(checkpoint.shape(name) == shape for name, shape in shapes.items())
    for kind in ("weight", "bias"):
        prefix, suffix = "model.layers.1.self_attn.", "" if kind == "weight" else "_bias"
        if f"{prefix}q_proj.{kind}" in stored:
            parts = [stored[f"{prefix}{x}_proj.{kind}"] for x in "qkv"]
            assert torch.equal(weights[f"layers.1.qkv{suffix}"], torch.cat(parts))
        else:
            assert f"layers.1.qkv{suffix}" not in weights or family.startswith("phi3")
    assert torch.equal(weights["layers.2.down"], stored["model.layers.2.mlp.down_proj.weight"])
    assert ("lm_head" in weights) == ("lm_head.weight" in stored)


def test_shards_give_the_same_weights() -> None:
    whole = open_checkpoint(make_checkpoint("qwen3_bias"))
    directory = make_checkpoint("qwen3_bias", max_shard_size="60KB")
    assert len(list(directory.glob("model-*.safetensors"))) >= 4
    sharded = open_checkpoint(directory)
    for name in whole.names():
        assert torch.equal(sharded.weight(name), whole.weight(name))


def test_conversion_is_exact_and_keeps_the_file_unharmed() -> None:
    directory = make_checkpoint("llama", dtype="bfloat16")
    before = (directory / WEIGHTS).read_bytes()
    checkpoint = open_checkpoint(directory)
    assert checkpoint.config.dtype == "bfloat16"
    for name in ("embed", "layers.0.qkv", "layers.0.attn_norm"):
        narrow = checkpoint.weight(name).clone()
        assert narrow.dtype == torch.bfloat16
        assert torch.equal(checkpoint.weight(name, torch.float32), narrow.float())
        parts = checkpoint.parts(name, torch.float32)
        assert torch.equal(torch.cat(parts), narrow.float())
        assert len(parts) == (3 if name.endswith("qkv") else 1)
        checkpoint.parts(name, torch.bfloat16)[0].zero_()
        checkpoint.weight(name).zero_()  # forbidden, and still without effect on the file
    assert (directory / WEIGHTS).read_bytes() == before


def test_a_view_stays_right_after_its_pages_were_given_back() -> None:
    checkpoint = open_checkpoint(make_checkpoint("llama"))
    view = checkpoint.weight("layers.0.down")
    expected = view.clone()
    for name in checkpoint.names():
        checkpoint.weight(name)
    assert torch.equal(view, expected)


def test_tied_and_derived_tensors_in_the_file_are_ignored(tmp_path: Path) -> None:
    shutil.copytree(make_checkpoint("smollm2"), tmp_path / "model")

    def add(weights) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)

    edit_weights(tmp_path / "model", add)
    assert "lm_head" not in open_checkpoint(tmp_path / "model").names()


def test_truncated_anywhere_is_refused(copy: Path) -> None:
    raw = (copy / WEIGHTS).read_bytes()
    for size in (0, 7, 9, 100, 3000, len(raw) // 2, len(raw) - 1):
        (copy / WEIGHTS).write_bytes(raw[:size])
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            open_checkpoint(copy)
    (copy / WEIGHTS).write_bytes(raw[:-1])
    with pytest.raises(CheckpointError, match=r"for tensor model.*truncated"):
        open_checkpoint(copy)
    (copy / WEIGHTS).write_bytes(raw + b"x")
    with pytest.raises(CheckpointError, match="as its header says"):
        open_checkpoint(copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:-5], "a JSON header"),
        (lambda text: "[" + " " * 20 + "]", "a JSON object as header, got list"),
        (lambda text: "{" + text[1:].replace("{", "[", 1), "a JSON header"),
        (lambda text: text.replace('"shape"', '"shapes"', 1), "with dtype, shape and data_offsets"),
        (lambda text: text.replace('"F32"', '"F16"', 1), r"to take \d+ bytes, got \d+ bytes"),
        (lambda text: text.replace("[199,96]", "[-1,96]", 1), "with dtype, shape"),
        (lambda text: text.replace("[199,96]", "[true,96]", 1), "with dtype, shape"),
        (lambda text: text.replace("[199,96]", f"{[9] * 5000}", 1), "with dtype, shape"),
        (lambda text: text.replace('"F32"', '"I32"'), "quantised checkpoints are not supported"),
        (lambda text: text.replace('"F32"', '"F64"'), "one of F32, BF16, F16, got F64; save it in"),
        (
            lambda text: text.replace("layers.1.mlp.down", "layers.0.mlp.down"),
            "stands twice",
        ),
    ],
)
def test_damaged_headers_are_refused(copy: Path, change, words: str) -> None:
    edit_header(copy / WEIGHTS, change)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(copy)


def test_overlapping_tensors_are_refused(copy: Path) -> None:
    def overlap(text: str) -> str:
        begins = sorted(int(begin) for begin in re.findall(r'data_offsets":\[(\d+),', text))
        header = json.loads(text)
        for entry in header.values():
            if isinstance(entry, dict) and entry.get("data_offsets", [0])[0] == begins[3]:
                entry["data_offsets"] = [x - 4 for x in entry["data_offsets"]]
        return json.dumps(header)

    edit_header(copy / WEIGHTS, overlap)
    with pytest.raises(CheckpointError, match="to begin at byte"):
        open_checkpoint(copy)


@pytest.mark.parametrize(
    ("offsets", "words"),
    [([8, 12], "tensor b to begin at byte"), ([8, 4], "tensor b with dtype, shape and data_off")],
)
def test_offsets_that_leave_a_gap_or_run_backwards_are_refused(
    tmp_path: Path, offsets: list[int], words: str
) -> None:
    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"a": one, "b": {**one, "data_offsets": offsets}}).encode()
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))
    with pytest.raises(CheckpointError, match=words):
        SafetensorsFile(file)


def test_an_absurd_header_length_is_refused(copy: Path) -> None:
    raw = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(struct.pack("<Q", 2**63) + raw[8:])
    with pytest.raises(CheckpointError, match="a header length of 9223372036854775808"):
        open_checkpoint(copy)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_corruption_of_the_header_escapes_as_another_error(data: st.DataObject) -> None:
    """One to eight bytes of the first 4 KiB are overwritten: opened, or a CheckpointError."""
    source = make_checkpoint("llama")
    target = source.parent / "fuzzed"
    target.mkdir(exist_ok=True)
    raw = bytearray((source / WEIGHTS).read_bytes())
    (length,) = struct.unpack("<Q", raw[:8])
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, min(4096, length + 7)))] = data.draw(st.integers(0, 255))
    (target / WEIGHTS).write_bytes(raw)
    try:
        file = SafetensorsFile(target / WEIGHTS)
        for name, stored in file.tensors.items():
            if stored.dtype_name in ("F32", "F16", "BF16"):
                assert file.read(name).shape == stored.shape
    except CheckpointError as error:
        assert "model.safetensors" in str(error)


def test_an_unaligned_tensor_is_read(tmp_path: Path) -> None:
    values = torch.randn(5, 3)
    header = json.dumps({"a": {"dtype": "F32", "shape": [5, 3], "data_offsets": [0, 60]}}) + " "
    while (8 + len(header)) % 4 != 1:
        header += " "
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header.encode() + values.numpy().tobytes())
    tensor = SafetensorsFile(file).read("a")
    assert torch.equal(tensor, values)
    assert tensor.data_ptr() % 4 == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("model.layers.2.mlp.up_proj.weight"), r"2\.mlp\.up_proj\.weight.*1 of"),
        (lambda w: w.pop("lm_head.weight"), r"tensor lm_head\.weight"),
        (
            lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(96)}),
            r"no tensor model\.layers\.0\.self_attn\.q_proj\.bias",
        ),
        (
            lambda w: w.update({"model.norm.weight": torch.ones(95)}),
            r"tensor model\.norm\.weight of shape \[96\], as config\.json says, got \[95\]",
        ),
        (
            lambda w: w.update({"model.norm.weight": torch.ones(96, dtype=torch.int8)}),
            r"tensor model\.norm\.weight to be one of F32, BF16, F16, got I8",
        ),
    ],
)
def test_wrong_tensors_are_refused(copy: Path, change, words: str) -> None:
    edit_weights(copy, change)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(copy)


@pytest.mark.parametrize("chunk", [100, checkpoint_module.FINITE_CHUNK])
def test_nan_and_infinity_are_named_when_asked_for(
    copy: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(checkpoint_module, "FINITE_CHUNK", chunk)

    def spoil(weights) -> None:
        weights["model.layers.1.self_attn.k_proj.weight"][3, 5] = float("nan")
        weights["model.norm.weight"][7] = float("-inf")

    edit_weights(copy, spoil)
    checkpoint = open_checkpoint(copy)
    assert checkpoint.weight("layers.0.qkv", check_finite=True).isfinite().all()
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.k_proj.*nan at element 293"):
        checkpoint.weight("layers.1.qkv", check_finite=True)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight, got -inf at element 7 of 96"):
        checkpoint.weight("final_norm", check_finite=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_number_is_found_wherever_it_stands(copy: Path, dtype, value: float) -> None:
    """The last rows too, where a vectorised search has its remainder."""
    name = "model.layers.0.mlp.down_proj.weight"
    size = 96 * 88
    for index in (0, 1, 31, size // 2 + 5, size - 9, size - 2, size - 1):

        def spoil(weights, index: int = index) -> None:
            weights[name] = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(dtype)
            weights[name][index] = value
            weights[name] = weights[name].view(96, 88)

        edit_weights(copy, spoil)
        with pytest.raises(CheckpointError, match=f"{value} at element {index} of {size}"):
            open_checkpoint(copy).weight("layers.0.down", check_finite=True)


def test_what_the_format_asked_for_cannot_hold_is_named(copy: Path) -> None:
    def widen(weights) -> None:
        weights["model.norm.weight"][7] = 1e5

    edit_weights(copy, widen)
    checkpoint = open_checkpoint(copy)
    for dtype in (None, torch.float32, torch.bfloat16):
        checkpoint.weight("final_norm", dtype, check_finite=True)
    words = r"numbers that fit torch\.float16 in tensor model\.norm\.weight, got 1.*7 of 96.*dtype"
    with pytest.raises(CheckpointError, match=words):
        checkpoint.weight("final_norm", torch.float16, check_finite=True)


def test_the_weights_say_their_format_where_the_configuration_does_not(copy: Path) -> None:
    stored = open_checkpoint(copy)
    assert stored.dtype_name == stored.config.dtype == "float32"
    config = json.loads((copy / "config.json").read_text())
    for key in ("dtype", "torch_dtype"):
        config.pop(key, None)
    (copy / "config.json").write_text(json.dumps(config))
    unsaid = open_checkpoint(copy)
    assert unsaid.config.dtype is None and unsaid.dtype_name == "float32"


def test_pickle_checkpoints_are_refused_with_the_conversion(copy: Path) -> None:
    (copy / WEIGHTS).rename(copy / "pytorch_model.bin")
    odd = copy / 'it\'s my "model"'
    shutil.copytree(copy, odd)
    with pytest.raises(CheckpointError) as refusal:
        open_checkpoint(odd)
    *words, code = shlex.split(str(refusal.value).partition("convert with: ")[2])
    assert words == ["python", "-c"]
    constants = [x.value for x in ast.walk(ast.parse(code)) if isinstance(x, ast.Constant)]
    assert constants == [str(odd)] * 2
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin; only safetensors.*save_pretr"):
        open_checkpoint(copy)
    (copy / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="neither"):
        open_checkpoint(copy)


def test_missing_things_are_refused(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing there; download"):
        open_checkpoint(tmp_path / "no")
    with pytest.raises(CheckpointError, match="a file; download"):
        open_checkpoint(copy / "config.json")
    (copy / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"a file config\.json"):
        open_checkpoint(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json to be readable JSON"):
        open_checkpoint(copy)
    (copy / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config\.json to hold a JSON object"):
        open_checkpoint(copy)


def test_damaged_indexes_are_refused(tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(make_checkpoint("llama", max_shard_size="60KB"), copy)
    index_file = copy / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    shards = sorted(set(index["weight_map"].values()))
    (copy / shards[1]).rename(copy / "gone")
    with pytest.raises(CheckpointError, match=f"shard {shards[1]} in .*, for tensor model"):
        open_checkpoint(copy)
    shutil.copy(copy / shards[0], copy / shards[1])
    with pytest.raises(CheckpointError, match=f"got {shards[0]} and {shards[1]}"):
        open_checkpoint(copy)
    index_file.write_text(json.dumps({"weight_map": {"a": "b" * 5000}}))
    with pytest.raises(CheckpointError, match="for tensor a, got no such file"):
        open_checkpoint(copy)
    for bad in ({}, [], None, {"a": 3}, {"a": "../other.safetensors"}, {"a": "/etc/passwd"}):
        index_file.write_text(json.dumps({"weight_map": bad}))
        with pytest.raises(CheckpointError, match="weight_map"):
            open_checkpoint(copy)
