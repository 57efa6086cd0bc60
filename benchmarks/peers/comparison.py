"""Contestants take turns on every batch; medians, ratios within a batch, equal texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.peers.contestant import Answer, Contestant, Task

__all__ = ["Standing", "compare", "to_markdown"]

COLUMNS = (
    "engine",
    "tok/s",
    "of our plain",
    "our speculative is",
    "equal texts",
    "first difference",
)


@dataclass(frozen=True, slots=True)
class Standing:
    """One contestant at the end.

    Args:
        name: of the contestant.
        configuration: of the contestant.
        tokens_per_s: of a whole batch, median over batches of medians over repeats.
        over_plain: its speed over our plain decoding's, median of the batches' ratios.
        under_speculative: our speculative decoding's speed over its, likewise.
        num_equal: prompts whose text equals that of our plain decoding.
        num_prompts: of so many.
        first_difference: earliest token at which a text differs; None where none does.
    """

    name: str
    configuration: str
    tokens_per_s: float
    over_plain: float
    under_speculative: float
    num_equal: int
    num_prompts: int
    first_difference: int | None


def compare(
    contestants: Sequence[Contestant],
    tasks: Sequence[Task],
    repeats: int,
    *,
    plain: str,
    speculative: str,
    on_answer: Callable[[], None] = lambda: None,
) -> list[Standing]:
    """Runs every task on everybody in turn; who begins changes with every round.

    Args:
        contestants: `plain` and `speculative` among them.
        tasks: the batches.
        repeats: rounds per batch.
        plain: name of the contestant whose text and speed the others are held against.
        speculative: name of our other one.
        on_answer: called after every batch.
    """
    speeds: dict[str, list[float]] = {c.name: [] for c in contestants}
    answers: dict[str, list[Answer]] = {c.name: [] for c in contestants}
    for task in tasks:
        found: dict[str, list[Answer]] = {c.name: [] for c in contestants}
        for turn in range(repeats):
            first = turn % len(contestants)
            for contestant in (*contestants[first:], *contestants[:first]):
                found[contestant.name].append(contestant.answer(task))
                on_answer()
        for name, runs in found.items():
            speeds[name].append(median(run.tokens_per_s for run in runs))
            answers[name].append(runs[0])
    return [
        _standing(c, speeds, answers, plain=plain, speculative=speculative) for c in contestants
    ]


def _standing(
    contestant: Contestant,
    speeds: dict[str, list[float]],
    answers: dict[str, list[Answer]],
    *,
    plain: str,
    speculative: str,
) -> Standing:
    own = speeds[contestant.name]
    differences = [
        _first_difference(one, other)
        for plain_run, run in zip(answers[plain], answers[contestant.name], strict=True)
        for one, other in zip(plain_run.token_ids, run.token_ids, strict=True)
    ]
    found = [place for place in differences if place is not None]
    return Standing(
        name=contestant.name,
        configuration=contestant.configuration,
        tokens_per_s=median(own),
        over_plain=median(m / p for p, m in zip(speeds[plain], own, strict=True)),
        under_speculative=median(t / m for t, m in zip(speeds[speculative], own, strict=True)),
        num_equal=len(differences) - len(found),
        num_prompts=len(differences),
        first_difference=min(found, default=None),
    )


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Index of the first token that differs; a missing one does."""
    for index in range(max(len(one), len(other))):
        if list(one[index : index + 1]) != list(other[index : index + 1]):
            return index
    return None


def to_markdown(standings: Sequence[Standing]) -> str:
    """A table, then everybody's configuration."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for s in standings:
        cells = [
            s.name,
            f"{s.tokens_per_s:.1f}",
            f"{s.over_plain:.2f}x",
            f"{s.under_speculative:.2f}x",
            f"{s.num_equal} of {s.num_prompts}",
            "" if s.first_difference is None else f"token {s.first_difference}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    lines += [f"- {s.name}: {s.configuration}" for s in standings]
    return "\n".join(lines) + "\n"
