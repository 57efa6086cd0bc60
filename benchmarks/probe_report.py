"""What the probe found: its verdicts, as JSON and as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.conditions import as_lines
from benchmarks.generate import ADAPTIVE
from benchmarks.probe_model import Prediction


@dataclass(frozen=True, slots=True)
class Check:
    """A prediction held against a real run.

    Args:
        budget: nodes, or "adaptive".
        predicted, measured: speed over plain decoding.
    """

    budget: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Of the prediction, relative to what was measured."""
        return self.predicted / self.measured - 1.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """One batch size and temperature.

    Args:
        batch_size, temperature: of the requests.
        predictions: by budget.
        best: the budget recommended; 0 is plain decoding.
        adaptive: speed over plain decoding predicted for the adaptive budget.
        use: the setting to paste, for the budget recommended.
        checks: the recommended budget, or the best above 0 where none pays; or those asked for.
    """

    batch_size: int
    temperature: float
    predictions: list[Prediction]
    best: int
    adaptive: float
    use: str
    checks: list[Check]


def to_document(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON."""
    document = asdict(verdict)
    document["checks"] = [{**asdict(check), "error": check.error} for check in verdict.checks]
    return document


def to_text(conditions: dict, verdicts: list[Verdict]) -> str:
    """What a person reads."""
    lines = [as_lines(conditions)]
    for v in verdicts:
        lines += ["", f"batch {v.batch_size}, temperature {v.temperature:g}", ""]
        lines.append("budget  tokens/step  draft layers  cost in plain steps  predicted speed-up")
        for p in v.predictions:
            mark = " <" if p.budget == v.best else ""
            lines.append(
                f"{p.budget:6}  {p.tokens_per_step:11.2f}  {p.draft_layers:12.1f}"
                f"  {p.plain_steps:19.2f}  {p.speedup:17.2f}x{mark}"
            )
        lines.append(f"{ADAPTIVE:>8}{v.adaptive:60.2f}x")
        lines += ["", f"use: {v.use}"]
        lines += [
            f"budget {check.budget}: predicted {check.predicted:.2f}x, measured "
            f"{check.measured:.2f}x, error {check.error:+.0%}"
            for check in v.checks
        ]
    return "\n".join(lines)
