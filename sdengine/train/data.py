"""The corpus of the bundled pair: the running interpreter's standard library, as token blocks.

Promises: the file list is a function of the installed library alone; every 20th file is held
out and never trained on; batches are a pure function of (seed, step, sequence length), so that a
resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from sdengine.train.tokenizer import BOS, EOS

EXCLUDED_DIRECTORIES = frozenset(
    {
        "test",
        "tests",
        "idle_test",
        "idlelib",
        "lib2to3",
        "encodings",
        "turtledemo",
        "ensurepip",
        "site-packages",
        "dist-packages",
        "__pycache__",
    }
)
HELD_OUT_EVERY = 20


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One corpus file: path relative to the library, its text, and whether it is held out."""

    path: str
    text: str
    sha256: str
    is_held_out: bool

    @property
    def num_bytes(self) -> int:
        return len(self.text.encode("utf-8"))


def standard_library_files(root: Path | None = None) -> list[SourceFile]:
    """Every `.py` file below `root` outside `EXCLUDED_DIRECTORIES`, sorted by path.

    Args:
        root: library directory; the running interpreter's by default.

    Returns:
        Files of valid UTF-8; empty files and files in other encodings are left out.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    relative = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    files: list[SourceFile] = []
    for name in relative:
        if EXCLUDED_DIRECTORIES.intersection(name.split("/")[:-1]):
            continue
        raw = (root / name).read_bytes()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip():
            is_held_out = len(files) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
            files.append(SourceFile(name, text, hashlib.sha256(raw).hexdigest(), is_held_out))
    return files


def corpus_sha256(files: list[SourceFile]) -> str:
    """One hash over paths, contents and the split."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.path} {file.sha256} {int(file.is_held_out)}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class TokenStream:
    """Documents one after another: `<|bos|> text <|eos|> <|bos|> text <|eos|> ...`.

    Attributes:
        tokens: uint16 [num_tokens].
        statement_starts: int64, sorted; places where a top-level statement begins, at which a
            block may start as if it were a document of its own.
        num_bytes: UTF-8 bytes of the texts.
        bos_id: id of `<|bos|>`.
    """

    tokens: np.ndarray
    statement_starts: np.ndarray
    num_bytes: int
    bos_id: int

    def __len__(self) -> int:
        return len(self.tokens)


def _statement_starts(text: str, offsets: list[tuple[int, int]]) -> list[int]:
    """Token indices that begin a top-level `def`, `class`, `import`, `from` or decorator."""
    openers = ("def ", "class ", "import ", "from ", "@", "async def ")
    return [
        index
        for index, (begin, _) in enumerate(offsets)
        if begin > 0 and text[begin - 1] == "\n" and text.startswith(openers, begin)
    ]


def build_stream(tokenizer: Tokenizer, files: list[SourceFile]) -> TokenStream:
    """Tokenise and pack `files` in their order.

    Raises:
        AssertionError: if ids do not fit 16 bits.
    """
    assert tokenizer.get_vocab_size() <= 1 << 16, tokenizer.get_vocab_size()
    bos_id, eos_id = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    ids: list[int] = []
    starts: list[int] = []
    encodings = tokenizer.encode_batch([file.text for file in files], add_special_tokens=False)
    for file, encoding in zip(files, encodings, strict=True):
        base = len(ids) + 1
        starts += [base + index for index in _statement_starts(file.text, encoding.offsets)]
        ids += [bos_id, *encoding.ids, eos_id]
    return TokenStream(
        np.array(ids, dtype=np.uint16),
        np.array(starts, dtype=np.int64),
        sum(file.num_bytes for file in files),
        bos_id,
    )


@dataclass(frozen=True, slots=True)
class Blocks:
    """Training inputs. `inputs` and `labels` int64 [B, S]; `mask` bool [B, S] of counted labels;
    `states` bf16 [B, S, E], what a frozen target's head sees of the inputs, where it is kept."""

    inputs: Tensor
    labels: Tensor
    mask: Tensor
    states: Tensor | None = None

    def _tensors(self) -> list[Tensor]:
        tensors = [self.inputs, self.labels, self.mask]
        return tensors if self.states is None else [*tensors, self.states]

    def to(self, device: str) -> Blocks:
        return Blocks(*(tensor.to(device) for tensor in self._tensors()))

    def split(self, num_sequences: int) -> list[Blocks]:
        """Pieces of at most `num_sequences` sequences, in order."""
        pieces = (tensor.split(num_sequences) for tensor in self._tensors())
        return [Blocks(*piece) for piece in zip(*pieces, strict=True)]


def make_blocks(rows: np.ndarray, bos_id: int) -> Blocks:
    """Shift rows [B, S + 1] into inputs and labels; the `<|bos|>` after a document is no label."""
    tokens = torch.from_numpy(rows.astype(np.int64))
    labels = tokens[:, 1:].contiguous()
    return Blocks(tokens[:, :-1].contiguous(), labels, labels != bos_id)


@dataclass(frozen=True, slots=True)
class BlockSampler:
    """Shuffled passes over a stream, stateless in the step.

    Each pass cuts the stream at a new random offset and shuffles the blocks.  A share of the
    blocks starts at the preceding top-level statement instead and has `<|bos|>` in front, so
    that a prompt such as `def f(x):` at the start of a document is nothing new to the model.
    """

    stream: TokenStream
    seed: int
    statement_share: float = 0.25

    def blocks_per_pass(self, length: int) -> int:
        """Blocks of `length` in a pass, wherever it begins."""
        blocks = (len(self.stream) - 1) // length - 1
        assert blocks > 0, (len(self.stream), length)
        return blocks

    def rows(self, first_block: int, num_blocks: int, length: int) -> np.ndarray:
        """Blocks number `first_block`... of the endless sequence for this length.

        Returns:
            uint16 [num_blocks, length + 1].
        """
        blocks_per_pass = self.blocks_per_pass(length)
        output = np.empty((num_blocks, length + 1), dtype=np.uint16)
        current_pass, order, offset, snaps = -1, None, 0, None
        for row in range(num_blocks):
            which_pass, index = divmod(first_block + row, blocks_per_pass)
            if which_pass != current_pass:
                random = np.random.default_rng([self.seed, length, which_pass])
                order, offset = random.permutation(blocks_per_pass), int(random.integers(length))
                snaps = random.random(blocks_per_pass) < self.statement_share
                current_pass = which_pass
            self._fill(output[row], offset + int(order[index]) * length, bool(snaps[index]))
        return output

    def _fill(self, row: np.ndarray, start: int, snap: bool) -> None:
        """Write one block starting at `start`, or at the statement before it with `<|bos|>`."""
        starts = self.stream.statement_starts
        place = int(np.searchsorted(starts, start, side="right")) - 1
        if snap and place >= 0:
            row[0] = self.stream.bos_id
            row[1:] = self.stream.tokens[starts[place] : starts[place] + len(row) - 1]
        else:
            row[:] = self.stream.tokens[start : start + len(row)]

    def one_pass(self, length: int, max_blocks: int) -> np.ndarray:
        """The first blocks of a pass that no batch of the first million steps is cut from.

        Returns:
            uint16 [num_blocks, length + 1], at most a whole pass and at most `max_blocks`.
        """
        blocks_per_pass = self.blocks_per_pass(length)
        return self.rows(1_000_000 * blocks_per_pass, min(max_blocks, blocks_per_pass), length)

    def batch(self, step: int, num_tokens: int, length: int) -> Blocks:
        """The blocks of optimiser step `step`: `num_tokens // length` sequences of `length`."""
        num_blocks = max(1, num_tokens // length)
        return make_blocks(self.rows(step * num_blocks, num_blocks, length), self.stream.bos_id)


def evaluation_rows(stream: TokenStream, length: int, max_tokens: int | None = None) -> np.ndarray:
    """Consecutive rows from the start of `stream`; the tail that fills none is dropped.

    Returns:
        uint16 [num_rows, length + 1].
    """
    usable = len(stream) - 1 if max_tokens is None else min(max_tokens, len(stream) - 1)
    num_blocks = usable // length
    assert num_blocks > 0, (len(stream), length)
    index = np.arange(num_blocks)[:, None] * length + np.arange(length + 1)
    return stream.tokens[index]


def evaluation_blocks(stream: TokenStream, length: int, max_tokens: int | None = None) -> Blocks:
    """The blocks of `evaluation_rows`."""
    return make_blocks(evaluation_rows(stream, length, max_tokens), stream.bos_id)
