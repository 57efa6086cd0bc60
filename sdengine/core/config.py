"""The engine's settings, validated once, here; nothing changes them after construction.

`SpeculationConfig` says how trees are drafted and verified, `EngineConfig` everything else. They
know no model: what depends on the checkpoint (context length, vocabulary) is checked where the
checkpoint is opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, replace
from numbers import Integral

from sdengine.core.argument import (
    INT64_MAX,
    INT64_MIN,
    check_bool,
    check_choice,
    check_float,
    check_int,
    check_int_list,
    items_of,
    shown,
)
from sdengine.core.sampling_params import GREEDY_TEMPERATURE
from sdengine.errors import ConfigError

__all__ = [
    "BACKENDS",
    "DTYPES",
    "METHODS",
    "METHODS_WITHOUT_DRAFT_MODEL",
    "VERIFIERS",
    "EngineConfig",
    "SpeculationConfig",
]

METHODS = ("dyspec", "chain", "kary", "sampled", "ngram")
METHODS_WITHOUT_DRAFT_MODEL = ("ngram",)
VERIFIERS = ("coupled", "rejection")
VERIFIERS_OF_DRAWS = ("rejection",)
DTYPES = ("auto", "float32", "bfloat16", "float16")
BACKENDS = ("reference", "cpu", "triton", "cuda")

MAX_TREE_NODES = 1024
MAX_TREE_DEPTH = 256
MAX_CHILDREN = 32
MAX_NGRAM = 32
MAX_THREADS = 1024
INT32_MAX = 2**31 - 1
DEFAULT_BRANCHING = (4, 2, 2, 1)
DEFAULT_NGRAM = (1, 5)  # one token is enough where estimates are calibrated: by a table of costs
# 2.51 times plain decoding, from two tokens on 2.24 (1.1B, T 0; at T 1 1.15 and 1.10)
SPECULATION_WORDS = ("auto", "off", *METHODS)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationConfig:
    """How draft tokens are proposed and verified.

    Args:
        method: "dyspec" grows the tree of highest expected acceptance; "chain" one token per depth;
            "kary" a static tree of the tokens that rank highest; "sampled" a static tree of tokens
            sampled without replacement; all four with a draft model. With the coupled verifier
            tokens rank by the target's own noise (at temperature 0: by likelihood), which is a
            sample without replacement, so "kary" and "sampled" are the same there; with rejection
            there is "sampled" alone. "ngram" needs no model: it continues earlier occurrences of
            the last tokens.
        verifier: "coupled" gives the same text for the same seed as plain decoding; "rejection" is
            recursive rejection sampling without replacement: the same law, another text, which
            depends on the trees. A new engine with a fixed budget grows the same ones for the same
            requests; an adaptive budget goes by the clock.
        max_nodes: most draft tokens per sequence and step, the root not counted.
        max_depth: most draft tokens along one path.
        max_children: most children of one node.
        branching: children per node at depth 1, 2, ... of "kary" and "sampled"; an int k means k at
            every depth that fits max_nodes. None takes (4, 2, 2, 1) as far as it fits. An adaptive
            budget takes fewer levels, or fewer children of the root alone, where that pays. A list
            is kept as a tuple; other methods refuse it.
        adaptive: choose the budget per step, zero included, from measured costs and expected gain;
            False always drafts max_nodes.
        max_batch_nodes: most draft tokens of a step over all sequences; None leaves it to the
            budget controller.
        draft_temperature: temperature of the draft model; None follows each request's own, which
            accepts most. At least 1e-5 with "rejection": below it drafts are chosen, not drawn.
        calibrate: fit acceptance estimates online; False trusts the draft model's probabilities,
            or the shares of votes of "ngram".
        min_ngram: shortest run of tokens that "ngram" looks up; others refuse all but this.
        max_ngram: longest run of tokens that "ngram" looks up; others refuse all but this.

    Raises:
        ConfigError: an argument is of the wrong type, out of range, or contradicts another; the
            message names it.
    """

    method: str = "dyspec"
    verifier: str = "coupled"
    max_nodes: int = 64
    max_depth: int = 8
    max_children: int = 16
    branching: int | Iterable[int] | None = None
    adaptive: bool = True
    max_batch_nodes: int | None = None
    draft_temperature: float | None = None
    calibrate: bool = True
    min_ngram: int = DEFAULT_NGRAM[0]
    max_ngram: int = DEFAULT_NGRAM[1]

    def __post_init__(self) -> None:
        error = ConfigError
        check_choice(error, "method", self.method, METHODS)
        check_choice(error, "verifier", self.verifier, VERIFIERS)
        for name, high in (
            ("max_nodes", MAX_TREE_NODES),
            ("max_depth", MAX_TREE_DEPTH),
            ("max_children", MAX_CHILDREN),
            ("min_ngram", MAX_NGRAM),
            ("max_ngram", MAX_NGRAM),
        ):
            value = getattr(self, name)
            means_none = name == "max_nodes" and repr(value) in ("0", "None")
            way_out = "speculation=None decodes plainly" if means_none else ""
            self._set(name, check_int(error, name, value, 1, high, way_out))
        for name in ("adaptive", "calibrate"):
            check_bool(error, name, getattr(self, name))
        if self.method == "kary" and self.draws_drafts:
            raise error.from_parts(
                'verifier "coupled" with method "kary"',
                '"rejection"',
                'a kary tree is chosen, not drawn; method="sampled" is its drawn counterpart',
            )
        self._check_ngram()
        if self.max_batch_nodes is not None:
            limit = check_int(error, "max_batch_nodes", self.max_batch_nodes, 1, INT32_MAX)
            self._set("max_batch_nodes", limit)
        self._set("draft_temperature", self._checked_draft_temperature())
        self._set("branching", self._checked_branching())

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def needs_draft_model(self) -> bool:
        """Whether the method cannot work without a draft model."""
        return self.method not in METHODS_WITHOUT_DRAFT_MODEL

    @property
    def draws_drafts(self) -> bool:
        """Whether the verifier tests draft tokens that were drawn; any other takes the best."""
        return self.verifier in VERIFIERS_OF_DRAWS

    @property
    def level_widths(self) -> tuple[int, ...]:
        """Children per node at depth 1, 2, ... of the static methods; empty for the others."""
        if self.method == "chain":
            return (1,) * min(self.max_depth, self.max_nodes)
        if self.method not in ("kary", "sampled"):
            return ()
        if isinstance(self.branching, tuple):
            return self.branching
        widths: tuple[int, ...] = DEFAULT_BRANCHING
        if isinstance(self.branching, int):
            widths = (self.branching,) * self.max_depth
        return self._fitting(tuple(min(width, self.max_children) for width in widths))

    def _check_ngram(self) -> None:
        for name, default in zip(("min_ngram", "max_ngram"), DEFAULT_NGRAM):
            if self.method != "ngram" and getattr(self, name) != default:
                raise self._idle_option(name, 'it belongs to "ngram"')
        if self.min_ngram > self.max_ngram:
            raise ConfigError.from_parts(
                f"min_ngram <= max_ngram = {self.max_ngram}", str(self.min_ngram)
            )

    def _checked_draft_temperature(self) -> float | None:
        """Rejection takes children for draws from what the draft's softmax says. Below the greedy
        bound the kernels choose the best instead, and the target's law would be lost."""
        if self.draft_temperature is None:
            return None
        if not self.needs_draft_model:
            raise self._idle_option("draft_temperature", "it has no draft model")
        value = check_float(ConfigError, "draft_temperature", self.draft_temperature, 0.0)
        if self.draws_drafts and value < GREEDY_TEMPERATURE:
            raise ConfigError.from_parts(
                f'draft_temperature of at least {GREEDY_TEMPERATURE} with verifier "rejection", '
                "which tests drawn tokens: below it they are chosen",
                repr(value),
                'leave draft_temperature out, or take verifier="coupled"',
            )
        return value

    def _idle_option(self, name: str, reason: str) -> ConfigError:
        """The refusal of an option that would do nothing with this method."""
        return ConfigError.from_parts(
            f'no {name} with method "{self.method}"', shown(getattr(self, name)), reason
        )

    def _checked_branching(self) -> int | tuple[int, ...] | None:
        if self.branching is None:
            return None
        if self.method not in ("kary", "sampled"):
            raise self._idle_option("branching", 'it belongs to "kary" and "sampled"')
        limit = self.max_children
        if isinstance(self.branching, Integral):
            return check_int(ConfigError, "branching", self.branching, 1, limit)
        if items_of(self.branching) is None:
            raise ConfigError.from_parts(
                "branching to be an integer or a list of integers", shown(self.branching)
            )
        widths = check_int_list(ConfigError, "branching", self.branching, 1, limit)
        if not widths or self._fitting(widths) != widths:
            raise ConfigError.from_parts(
                f"branching of 1 to max_depth = {self.max_depth} levels that together hold at most "
                f"max_nodes = {self.max_nodes} nodes",
                f"{list(widths)} with {_num_nodes(widths)} nodes",
                "raise max_nodes or max_depth, or branch less",
            )
        return widths

    def _fitting(self, widths: tuple[int, ...]) -> tuple[int, ...]:
        """Return the longest prefix within max_depth and max_nodes, at least one level of it."""
        widths = widths[: self.max_depth]
        while len(widths) > 1 and _num_nodes(widths) > self.max_nodes:
            widths = widths[:-1]
        return (min(widths[0], self.max_nodes), *widths[1:]) if widths else widths


def _num_nodes(widths: tuple[int, ...]) -> int:
    total, level = 0, 1
    for width in widths:
        level *= width
        total += level
    return total


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of one engine.

    Args:
        model: a directory in Hugging Face format, or the name of a bundled pair.
        draft: directory of the draft model, or the name of a bundled pair, for its draft; plain
            decoding does not open it. None takes the draft of the pair that `model` names, or none.
        device: "cpu", "cuda" or "cuda:<index>"; "auto" is the CPU, unless the backend is a GPU's.
        dtype: of weights and KV cache: "float32", "bfloat16" or "float16"; "auto" is the
            checkpoint's own, but bfloat16 on CPUs that have instructions for it (avx512_bf16).
        speculation: a SpeculationConfig, the name of a method, None (or "off") for plain decoding,
            or "auto": "dyspec" when there is a draft model, else "ngram". Kept as
            SpeculationConfig, None or "auto".
        max_num_seqs: most sequences that run at once.
        max_model_len: most tokens of a sequence, prompt included; None takes the checkpoint's.
        num_kv_blocks: blocks of the KV cache; None derives it from max_num_seqs and max_model_len,
            or from free memory.
        block_size: tokens per KV block, a power of two from 8 to 256.
        max_num_batched_tokens: most pending tokens of a step, of prompts and of decoding sequences;
            tree nodes come on top. Longer prompts are prefilled in chunks of at most so many.
        enable_prefix_caching: reuse KV blocks between requests whose prompts begin alike.
        num_threads: CPU threads; None takes SDENGINE_NUM_THREADS, or as many as the logical CPUs
            that this process may use.
        seed: 64-bit integer from which requests without a seed get theirs.
        backend: of every op; None takes SDENGINE_BACKEND, or chooses. "triton" and "cuda" run on a
            GPU, each with the other's kernels for the ops that it lacks.
        conditional_graphs: on a GPU, let the CUDA graph of a step skip draft layers without rows by
            itself (conditional nodes, driver for CUDA 12.4 or newer) instead of launching kernels
            that find nothing to do. A CPU always skips them, and refuses True.

    Raises:
        ConfigError: an argument is of the wrong type, out of range, or contradicts another; the
            message names it.
    """

    model: str | os.PathLike[str]
    draft: str | os.PathLike[str] | None = None
    _: KW_ONLY
    device: str = "auto"
    dtype: str = "auto"
    speculation: SpeculationConfig | str | None = "auto"
    max_num_seqs: int = 8
    max_model_len: int | None = None
    num_kv_blocks: int | None = None
    block_size: int = 64
    max_num_batched_tokens: int = 512
    enable_prefix_caching: bool = True
    num_threads: int | None = None
    seed: int = 0
    backend: str | None = None
    conditional_graphs: bool = False

    def __post_init__(self) -> None:
        error = ConfigError
        self._set("model", _checked_path("model", self.model))
        if self.draft is not None:
            self._set("draft", _checked_path("draft", self.draft))
        if not isinstance(self.device, str) or not re.fullmatch(
            r"auto|cpu|cuda(:\d+)?", self.device
        ):
            raise error.from_parts(
                'device to be "auto", "cpu", "cuda" or "cuda:0"', shown(self.device)
            )
        check_choice(error, "dtype", self.dtype, DTYPES)
        self._set("speculation", _checked_speculation(self.speculation))
        self._set("max_num_seqs", check_int(error, "max_num_seqs", self.max_num_seqs, 1, 4096))
        for name, low, high in (
            ("max_model_len", 2, INT64_MAX),
            ("num_kv_blocks", 1, INT32_MAX),
            ("num_threads", 1, MAX_THREADS),
        ):
            if getattr(self, name) is not None:
                self._set(name, check_int(error, name, getattr(self, name), low, high))
        self._set("block_size", check_int(error, "block_size", self.block_size, 8, 256))
        if self.block_size & (self.block_size - 1):
            raise error.from_parts("block_size to be a power of two", str(self.block_size))
        self._set(
            "max_num_batched_tokens",
            check_int(
                error,
                "max_num_batched_tokens",
                self.max_num_batched_tokens,
                self.max_num_seqs,
                way_out="every running sequence needs a row (max_num_seqs)",
            ),
        )
        for name in ("enable_prefix_caching", "conditional_graphs"):
            check_bool(error, name, getattr(self, name))
        self._set("seed", check_int(error, "seed", self.seed, INT64_MIN, INT64_MAX))
        self._set("backend", checked_backend("backend", self.backend))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def speculation_for(self, has_draft_model: bool) -> SpeculationConfig | None:
        """Return the speculation to run, with "auto" resolved.

        Args:
            has_draft_model: whether the engine has a draft model, given or bundled.

        Raises:
            ConfigError: the method asked for needs a draft model and there is none, or has no use
                for the one that was given.
        """
        speculation = self.speculation
        if speculation == "auto":
            return SpeculationConfig(method="dyspec" if has_draft_model else "ngram")
        assert speculation is None or isinstance(speculation, SpeculationConfig), speculation
        if speculation is not None and speculation.needs_draft_model and not has_draft_model:
            raise ConfigError.from_parts(
                f'a draft model for speculation method "{speculation.method}"',
                "none",
                'pass draft="path/to/draft", or method="ngram", which needs no draft model',
            )
        if speculation is not None and not speculation.needs_draft_model and self.draft is not None:
            raise ConfigError.from_parts(
                f'no draft model for speculation method "{speculation.method}"',
                f"draft={str(self.draft)!r}",
                'leave draft out, or pass a method that uses it, such as "dyspec"',
            )
        return speculation

    def with_changes(self, **changes: object) -> EngineConfig:
        """Return a copy with some arguments replaced, validated again."""
        return replace(self, **changes)  # type: ignore[arg-type]


def checked_backend(name: str, backend: object) -> str | None:
    """Return a backend's name, or None.

    Raises:
        ConfigError: an unknown backend; the message lists those that exist.
    """
    return None if backend is None else check_choice(ConfigError, name, backend, BACKENDS)


def _checked_path(name: str, value: object) -> str:
    if (
        isinstance(value, bytes)
        or not isinstance(value, (str, os.PathLike))
        or not os.fspath(value)
    ):
        raise ConfigError.from_parts(
            f"{name} to be a directory or the name of a pair", shown(value)
        )
    return os.fspath(value)


def _checked_speculation(value: object) -> SpeculationConfig | str | None:
    if value is None or isinstance(value, SpeculationConfig):
        return value
    word = check_choice(ConfigError, "speculation", value, SPECULATION_WORDS)
    if word == "off":
        return None
    return word if word == "auto" else SpeculationConfig(method=word)
