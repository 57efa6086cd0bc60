"""What a controller may ask of the sequences of the next step, against what the engine knows."""

from __future__ import annotations

from sdengine.controllers.base import AskOutlook
from sdengine.core.config import SpeculationConfig
from sdengine.core.plan import Outlook, StepPlan, StepReport
from sdengine.core.sampling_params import SamplingParams
from tests.engine.conftest import MakeEngine, related_draft

PROMPTS = [list(range(3, 23)), [5, 9, 5]]


class Asking:
    """Decodes plainly, with trees in step `tree_step`, and asks before every step."""

    def __init__(self, tree_step: int) -> None:
        self.seen: list[Outlook] = []
        self._tree_step = tree_step

    def plan(self, num_decoding: int, outlook: AskOutlook | None = None) -> StepPlan:
        assert outlook is not None
        self.seen.append(outlook())
        is_tree = num_decoding > 0 and len(self.seen) == self._tree_step
        return StepPlan(1, num_decoding) if is_tree else StepPlan(0, 0)

    def observe(self, plan: StepPlan, report: StepReport) -> None:
        pass


def outlooks(
    make_engine: MakeEngine, method: str, tree_step: int, max_tokens: tuple[int, int]
) -> list[Outlook]:
    """Of a batch of two."""
    engine = make_engine(
        draft=related_draft() if method == "dyspec" else None,
        speculation=SpeculationConfig(method=method, adaptive=False, max_nodes=2),
    )
    asking = Asking(tree_step)
    engine.controller = asking
    for i, (prompt, room) in enumerate(zip(PROMPTS, max_tokens)):
        engine.add_request(str(i), prompt, SamplingParams(max_tokens=room, ignore_eos=True))
    while engine.has_unfinished_requests():
        engine.step()
    return asking.seen


def test_a_draft_that_follows_nothing_falls_behind_by_the_step(make_engine: MakeEngine) -> None:
    seen = outlooks(make_engine, "dyspec", 0, (6, 6))
    prompts = sum(map(len, PROMPTS))
    assert [outlook.draft_backlog for outlook in seen] == [prompts + 2 * i for i in range(6)]
    assert [outlook.tokens_left for outlook in seen] == [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]


def test_the_mean_is_over_those_that_decode(make_engine: MakeEngine) -> None:
    seen = outlooks(make_engine, "dyspec", 0, (2, 6))
    assert [outlook.tokens_left for outlook in seen] == [4.0, 3.0, 4.0, 3.0, 2.0, 1.0]
    assert seen[2].draft_backlog == len(PROMPTS[1]) + 2, "who has ended counts no more"


def test_a_tree_leaves_little_to_read(make_engine: MakeEngine) -> None:
    seen = outlooks(make_engine, "dyspec", 3, (12, 12))
    prompts = sum(map(len, PROMPTS))
    assert [outlook.draft_backlog for outlook in seen[:3]] == [prompts, prompts + 2, prompts + 4]
    assert seen[3].draft_backlog <= 4


def test_a_drafter_without_a_model_has_nothing_to_read(make_engine: MakeEngine) -> None:
    assert {outlook.draft_backlog for outlook in outlooks(make_engine, "ngram", 2, (6, 6))} == {0}
