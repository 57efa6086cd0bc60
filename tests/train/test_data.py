"""The corpus keeps its promises: what is in it, what is held out, how documents are packed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdengine.train.data import (
    EXCLUDED_DIRECTORIES,
    HELD_OUT_EVERY,
    BlockSampler,
    SourceFile,
    build_stream,
    corpus_sha256,
    evaluation_blocks,
    make_blocks,
    standard_library_files,
)
from sdengine.train.tokenizer import BOS, EOS, PAD, train_tokenizer
from tests.train.conftest import source


@pytest.fixture(scope="module")
def library():
    return standard_library_files()


def test_corpus_excludes_tests_and_unwanted_packages(library):
    paths = [file.path for file in library]
    assert len(paths) > 300
    assert "ast.py" in paths and "json/decoder.py" in paths
    for path in paths:
        assert not EXCLUDED_DIRECTORIES.intersection(path.split("/")), path
    assert not any(path.startswith(("test/", "idlelib/", "encodings/")) for path in paths)


def test_every_twentieth_file_is_held_out(library):
    held_out = [index for index, file in enumerate(library) if file.is_held_out]
    assert held_out == list(range(HELD_OUT_EVERY - 1, len(library), HELD_OUT_EVERY))


def test_held_out_texts_are_not_among_the_training_texts(library):
    train = {file.sha256 for file in library if not file.is_held_out}
    held_out = [file.sha256 for file in library if file.is_held_out]
    assert held_out and not train.intersection(held_out)


def test_other_encodings_and_empty_files_are_left_out(tmp_path: Path):
    (tmp_path / "good.py").write_text("x = 1\n", encoding="utf-8")
    (tmp_path / "empty.py").write_text("\n", encoding="utf-8")
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "inner.py").write_text("x = 1\n", encoding="utf-8")
    assert [file.path for file in standard_library_files(tmp_path)] == ["good.py"]


def test_corpus_hash_depends_on_content_and_split(library):
    first = library[0]
    changed = [replace(first, is_held_out=True), *library[1:]]
    assert corpus_sha256(library) == corpus_sha256(list(library))
    assert corpus_sha256(library) != corpus_sha256(changed)


def test_stream_packs_whole_documents_with_boundaries(tokenizer):
    files = [source("alpha", 3), source("beta", 5)]
    stream = build_stream(tokenizer, files)
    ids = stream.tokens.tolist()
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    assert ids.count(bos) == ids.count(eos) == 2
    cut = ids.index(eos) + 1
    for document, file in zip((ids[:cut], ids[cut:]), files):
        assert document[0] == bos and document[-1] == eos
        assert tokenizer.decode(document[1:-1]) == file.text
    assert stream.tokens.dtype == np.uint16
    assert stream.num_bytes == sum(len(file.text.encode()) for file in files)


def test_statement_starts_are_top_level_statements(tokenizer):
    text = "import os\n\ndef f():\n    import re\n\n\n@g\nclass A:\n    def h(self): pass\n"
    stream = build_stream(tokenizer, [SourceFile("a.py", text, "", False)])
    tails = [tokenizer.decode(stream.tokens[i:].tolist()) for i in stream.statement_starts]
    beginnings = [tail.split("\n")[0] for tail in tails]
    assert beginnings == ["def f():", "@g", "class A:"]


def test_begin_of_document_is_never_a_label(tokenizer):
    bos = tokenizer.token_to_id(BOS)
    rows = np.array([[5, 6, 1, bos, 7]], dtype=np.uint16)
    blocks = make_blocks(rows, bos)
    assert blocks.inputs.tolist() == [[5, 6, 1, bos]]
    assert blocks.labels.tolist() == [[6, 1, bos, 7]]
    assert blocks.mask.tolist() == [[True, True, False, True]]


def test_blocks_are_a_function_of_seed_and_number(streams):
    sampler = BlockSampler(streams.train, seed=3)
    together = sampler.rows(0, 200, 32)
    apart = np.concatenate([sampler.rows(first, 8, 32) for first in range(0, 200, 8)])
    assert np.array_equal(together, apart)
    assert not np.array_equal(together, BlockSampler(streams.train, seed=4).rows(0, 200, 32))


def test_one_pass_without_snapping_covers_the_stream_once(streams):
    length = 32
    sampler = BlockSampler(streams.train, seed=0, statement_share=0.0)
    count = (len(streams.train) - 1) // length - 1
    rows = sampler.rows(0, count, length)
    stream = streams.train.tokens
    seen = {row.tobytes() for row in rows}

    def cut_at(offset: int) -> set[bytes]:
        return {stream[offset + i * length :][: length + 1].tobytes() for i in range(count)}

    assert sum(cut_at(offset) == seen for offset in range(length)) == 1


def test_snapped_blocks_begin_a_document_at_a_statement(streams, tokenizer):
    rows = BlockSampler(streams.train, seed=0, statement_share=1.0).rows(5, 20, 32)
    bos = tokenizer.token_to_id(BOS)
    for row in rows[(rows[:, 0] == bos)]:
        assert tokenizer.decode(row[1:].tolist()).startswith("def ")
    assert (rows[:, 0] == bos).mean() > 0.9


def test_evaluation_blocks_are_consecutive(streams):
    blocks = evaluation_blocks(streams.held_out, 32)
    flat = blocks.inputs.flatten().numpy()
    assert np.array_equal(flat, streams.held_out.tokens[: len(flat)])
    assert np.array_equal(blocks.labels.flatten().numpy(), streams.held_out.tokens[1:][: len(flat)])


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_tokenizer_round_trip_is_exact(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    literal = any(special in text for special in (BOS, EOS, PAD))
    assert tokenizer.decode(ids, skip_special_tokens=not literal) == text


@settings(max_examples=100, deadline=None)
@given(raw=st.binary())
def test_tokenizer_knows_every_byte(tokenizer, raw):
    text = raw.decode("latin-1") + "\U0001f40d\ufeff\x00 \t\r\n"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text


def test_tokenizer_adds_begin_and_nothing_else(tokenizer):
    encoding = tokenizer.encode("x = 1")
    assert encoding.tokens[0] == BOS
    assert tokenizer.decode(encoding.ids) == "x = 1"
    assert [tokenizer.token_to_id(token) for token in (BOS, EOS, PAD)] == [0, 1, 2]


def test_tokenizer_training_is_deterministic():
    texts = [source("alpha", 30).text]
    assert train_tokenizer(texts, 300).to_str() == train_tokenizer(texts, 300).to_str()
