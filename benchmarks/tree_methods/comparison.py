"""The cells of the comparison: one pair, one temperature, every method and budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch

from benchmarks.tree_methods.estimates import ratio, standard_error
from benchmarks.tree_methods.lab import Growth, TreeLab
from benchmarks.tree_methods.pairs import Pair
from benchmarks.tree_methods.sequoia import positional_acceptance
from benchmarks.tree_methods.specinfer import SUPPORT, decode_specinfer
from benchmarks.tree_methods.walks import decode, plain_texts
from sdengine.core.config import SpeculationConfig
from sdengine.core.sampling_params import SamplingParams
from sdengine.policies.dyspec import DySpecPolicy
from sdengine.policies.static import StaticPolicy

__all__ = ["METHODS", "Cell", "Prompts", "compare"]

METHODS = ("chain", "specinfer", "sequoia", "dyspec-raw", "dyspec")
MAX_CHILDREN = 32
BATCH = 6
SPECINFER_DEPTHS = (4, 8, 16)
FIT_TOKENS = 16  # per prompt, to choose SpecInfer's depth and to warm calibration up
REPLAY_SEEDS = 10_000  # between the seeds of two replays


@dataclass(frozen=True, slots=True)
class Prompts:
    """Token ids: `fit` for what methods may learn beforehand, `measure` for what counts."""

    fit: Sequence[Sequence[int]]
    measure: Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure.

    Args:
        tokens_per_step: mean, bonus token included.
        standard_error: of that mean, over prompts.
        by_prompt: tokens and steps of every prompt.
        note: what was chosen for the method.
    """

    pair: str
    temperature: float
    verifier: str
    method: str
    budget: int
    tokens_per_step: float
    standard_error: float
    by_prompt: list[tuple[int, int]]
    note: str = ""


class Comparison:
    """Texts, fitted vectors and labs of one pair at one temperature.

    Args:
        pair: the models.
        prompts: what to fit on and what to measure.
        params: of the texts that are measured.
        max_depth: deepest tree.
        fit_tokens: new tokens of a fitting text.
        replays: how often rejection walks go through each text, with draws and coins of their own.
            (One replay of 48 prompts at 8 nodes and temperature 1 leaves a standard error of 1.4%,
            most of it from coins.)
    """

    def __init__(
        self,
        pair: Pair,
        prompts: Prompts,
        params: SamplingParams,
        max_depth: int,
        fit_tokens: int,
        replays: int = 1,
    ) -> None:
        self.pair, self.prompts, self.params, self.max_depth = pair, prompts, params, max_depth
        self._replays = replays
        self._lengths = max(map(len, [*prompts.fit, *prompts.measure]))
        self.texts = self._texts(prompts.measure, params)
        self._fit_params = replace(params, seed=params.seed + 1000, max_tokens=fit_tokens)
        self.fit_texts = self._texts(prompts.fit, self._fit_params)
        self._positional: dict[bool, torch.Tensor] = {}

    def _texts(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[list[int]]:
        longer = replace(params, max_tokens=params.max_tokens + 2 * self.max_depth + 2)
        growth = Growth(StaticPolicy((1,), "uniform"), 1, 1, 1)
        lab = TreeLab(self.pair, growth, BATCH, self._lengths + longer.max_tokens + 1)
        return [text for group in grouped(prompts) for text in plain_texts(lab, group, longer)]

    def positional(self, is_rejection: bool) -> torch.Tensor:
        """Sequoia's vector, measured once a rule."""
        if is_rejection not in self._positional:
            self._positional[is_rejection] = positional_acceptance(
                self.pair,
                self.prompts.fit,
                self.fit_texts,
                self._fit_params,
                is_rejection=is_rejection,
                num_children=MAX_CHILDREN,
                num_candidates=SUPPORT if is_rejection else MAX_CHILDREN,
            )
        return self._positional[is_rejection]

    def growth(self, method: str, budget: int, is_rejection: bool) -> Growth:
        """The growth that a method's name stands for."""
        config = SpeculationConfig(
            method="chain" if method == "chain" else "dyspec",
            verifier="rejection" if is_rejection else "coupled",
            max_nodes=min(budget, self.max_depth) if method == "chain" else budget,
            max_depth=min(budget, self.max_depth),
            max_children=MAX_CHILDREN,
        )
        policy = (StaticPolicy if method == "chain" else DySpecPolicy).from_config(config)
        candidates = SUPPORT if is_rejection else policy.num_candidates
        growth = Growth(policy, config.max_nodes, config.max_depth, candidates, is_rejection)
        if method == "sequoia":
            vector = self.positional(is_rejection)[:candidates].contiguous()
            static = replace(policy, rule="node")  # type: ignore[type-var]
            return replace(growth, policy=static, positional_acceptance=vector)
        return replace(growth, calibrate=method == "dyspec")

    def cell(self, method: str, budget: int, is_rejection: bool) -> Cell:
        """Measures one figure."""
        note = ""
        if method == "specinfer":
            depth = self._specinfer_depth(budget)
            steps = self._specinfer(self.prompts.measure, self.params, budget, depth)
            note = f"{budget // depth} chains of {depth}"
        else:
            steps = self._steps(method, budget, is_rejection)
        by_prompt = [(sum(some), len(some)) for some in steps]
        return Cell(
            self.pair.name,
            self.params.temperature,
            "rejection" if is_rejection else "coupled",
            method,
            budget,
            ratio(by_prompt),
            standard_error(by_prompt),
            by_prompt,
            note,
        )

    def _steps(self, method: str, budget: int, is_rejection: bool) -> list[list[int]]:
        longest = self._lengths + self.params.max_tokens + 2 * self.max_depth + 2
        lab = TreeLab(self.pair, self.growth(method, budget, is_rejection), BATCH, longest)
        if method == "dyspec":  # an engine that has been running for a while
            tokens = min(FIT_TOKENS, self._fit_params.max_tokens)
            warm = replace(self._fit_params, max_tokens=tokens)
            for group, texts in zip(grouped(self.prompts.fit), grouped(self.fit_texts)):
                decode(lab, group, warm, texts, is_replayed=True)
        return [list(chain(*steps)) for steps in zip(*self._replay(lab))]

    def _replay(self, lab: TreeLab) -> Iterator[list[list[int]]]:
        """Steps of every prompt, a list a replay; what is drawn without the target's noise differs
        between them."""
        has_coins = lab.growth.is_rejection and not self.params.is_greedy
        for replay in range(self._replays if has_coins else 1):
            params = replace(self.params, seed=self.params.seed + replay * REPLAY_SEEDS)
            steps = []
            for group, texts in zip(grouped(self.prompts.measure), grouped(self.texts)):
                steps += decode(lab, group, params, texts, is_replayed=True)
            yield steps

    def _specinfer(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, budget: int, depth: int
    ) -> list[list[int]]:
        return decode_specinfer(self.pair, prompts, params, budget // depth, depth)

    def _specinfer_depth(self, budget: int) -> int:
        """The best of a few depths on some of the fitting prompts."""
        params = replace(self._fit_params, max_tokens=2 * FIT_TOKENS)
        deepest = min(budget, self.max_depth)
        depths = [d for d in SPECINFER_DEPTHS if d <= deepest] or [deepest]
        some = self.prompts.fit[: BATCH // 2]

        def tokens_per_step(depth: int) -> float:
            steps = self._specinfer(some, params, budget, depth)
            return ratio([(sum(counts), len(counts)) for counts in steps])

        return max(depths, key=tokens_per_step)


def grouped(items: Sequence[Sequence[int]]) -> list[Sequence[Sequence[int]]]:
    """Groups of BATCH."""
    assert len(items) % BATCH == 0, len(items)
    return [items[i : i + BATCH] for i in range(0, len(items), BATCH)]


def compare(
    comparison: Comparison, methods: Sequence[str], budgets: Sequence[int]
) -> Iterator[Cell]:
    """All cells of one pair at one temperature; at temperature 0 both rules are one."""
    is_greedy = comparison.params.is_greedy
    for budget in budgets:
        for method in methods:
            for is_rejection in (False,) if is_greedy else (False, True):
                if method != "specinfer" or is_rejection or is_greedy:
                    yield comparison.cell(method, budget, is_rejection)
