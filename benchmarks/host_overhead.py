"""What a step costs outside the kernels: the host's own work around the one native replay.

    python -m benchmarks.host_overhead

Engines of several batch sizes decode the same texts in turns, plainly, with a fixed tree and with
the adaptive budget, one iteration a step and up to sixteen in a row, as `LLM.generate` does. Per
iteration: the whole `Engine.step()`, how much of it the kernels took by the program's own clock,
and what is left, which is to be at most 30 us plus 5% of the whole. Of that, `Python` is the part
before and after the native call; the rest is waking the worker threads. Python's function calls are
counted, too: they do not depend on the machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import median
from time import perf_counter
from types import FrameType
from typing import Any

from benchmarks.conditions import as_lines, describe_machine
from sdengine import Engine, SpeculationConfig
from sdengine.cli.main import run_alone
from sdengine.cli.options import BUNDLED_MODEL, LineParser, add_debug, integer
from sdengine.cli.prompts import PROMPTS
from sdengine.core.argument import check_int
from sdengine.core.plan import MAX_ITERATIONS, UNSEEN_SECONDS
from sdengine.errors import ConfigError
from sdengine.kernels.programs.program import Program
from sdengine.runner.variant import Variant

GOAL_S, GOAL_SHARE = 30e-6, 0.05
FIXED = SpeculationConfig(max_nodes=4, max_depth=4, adaptive=False)
SPECULATION = {"plain": None, "4 nodes": FIXED, "adaptive": SpeculationConfig()}
WARM_UP_STEPS = 12


@dataclass(slots=True)
class Tally:
    """Steps of one engine, every number divided by the step's iterations.

    Args:
        step_s: whole steps.
        kernels_s: of these, between the program's first and last launch.
        replay_s: of these, inside the native call.
        num_iterations: of a step.
        num_calls: calls of Python functions; `num_native_calls`: of C functions.
    """

    step_s: list[float] = field(default_factory=list)
    kernels_s: list[float] = field(default_factory=list)
    replay_s: list[float] = field(default_factory=list)
    num_iterations: list[int] = field(default_factory=list)
    num_calls: list[float] = field(default_factory=list)
    num_native_calls: list[float] = field(default_factory=list)

    @property
    def outside_s(self) -> float:
        """Median of what the kernels did not take."""
        return median(step - kernels for step, kernels in zip(self.step_s, self.kernels_s))

    @property
    def python_s(self) -> float:
        """Median of what the native call did not take."""
        return median(step - replay for step, replay in zip(self.step_s, self.replay_s))

    @property
    def goal_s(self) -> float:
        """What is allowed outside the kernels."""
        return GOAL_S + GOAL_SHARE * median(self.step_s)


class ReplayTimer:
    """Times the native call of every step of an engine.

    Args:
        engine: whose programs are timed from now on.
    """

    def __init__(self, engine: Engine) -> None:
        self.seconds = 0.0
        self._program = engine.iteration.program
        self._timed: dict[Variant, _TimedProgram] = {}
        engine.iteration.program = self._timed_program  # type: ignore[method-assign,assignment]

    def _timed_program(self, variant: Variant) -> _TimedProgram:
        timed = self._timed.get(variant)
        if timed is None:
            timed = self._timed[variant] = _TimedProgram(self, self._program(variant))
        return timed


class _TimedProgram:
    def __init__(self, timer: ReplayTimer, program: Program) -> None:
        self._timer, self._start = timer, program.start

    def start(self, num_replays: int) -> int:
        begin = perf_counter()
        num_done = self._start(num_replays)
        self._timer.seconds = perf_counter() - begin
        return num_done


class CallCounter:
    """Counts calls in the calling thread: of Python functions, generators and comprehensions, which
    newer versions of Python inline, and of C functions."""

    def __init__(self) -> None:
        self.num_calls = self.num_native_calls = 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            self.num_calls += 1
        elif event == "c_call":
            self.num_native_calls += 1

    def count(self, run: Callable[[], object]) -> tuple[int, int]:
        """Calls inside `run`, itself included."""
        self.num_calls = self.num_native_calls = 0
        sys.setprofile(self)
        try:
            run()
        finally:
            sys.setprofile(None)
        return self.num_calls, self.num_native_calls - 1  # setprofile itself


@dataclass(frozen=True, slots=True)
class Case:
    """An engine that is measured, and what was seen so far."""

    name: str
    batch_size: int
    max_iterations: int
    engine: Engine
    timer: ReplayTimer
    tally: Tally

    @classmethod
    def open(
        cls, model: str, name: str, batch_size: int, max_iterations: int, num_threads: int | None
    ) -> Case:
        """An engine of so many slots."""
        engine = Engine(
            model,
            speculation=SPECULATION[name],
            max_num_seqs=batch_size,
            num_threads=num_threads,
        )
        return cls(name, batch_size, max_iterations, engine, ReplayTimer(engine), Tally())

    def run(self, num_steps: int) -> None:
        """Times so many steps in which everybody decodes, and counts the calls of as many more.

        Raises:
            ConfigError: a request came to its end before.
        """
        self._add_requests(2 * (num_steps + self.max_iterations) + WARM_UP_STEPS)
        engine, tally = self.engine, self.tally
        for _ in range(WARM_UP_STEPS):
            engine.step()
        num_left = num_steps
        while num_left > 0:
            begin = perf_counter()
            self._step()
            step_s, reports = perf_counter() - begin, engine.last_reports
            num_left -= len(reports)
            kernels_s = sum(report.draft_time_s + report.verify_time_s for report in reports)
            tally.num_iterations.append(len(reports))
            tally.step_s.append(step_s / len(reports))
            tally.kernels_s.append(kernels_s / len(reports))
            tally.replay_s.append(self.timer.seconds / len(reports))
        counter, num_left = CallCounter(), num_steps
        while num_left > 0:
            num_calls, num_native_calls = counter.count(self._step)
            num_iterations = len(engine.last_reports)
            num_left -= num_iterations
            tally.num_calls.append((num_calls - 3) / num_iterations)  # the timer's own and `_step`
            tally.num_native_calls.append((num_native_calls - 3) / num_iterations)
        running = [str(index) for index in range(self.batch_size) if engine.has_request(str(index))]
        for request_id in running:
            engine.abort_request(request_id)
        if len(running) < self.batch_size:
            raise ConfigError.from_parts(
                "--steps that requests of half a context outlast", str(num_steps), "give fewer"
            )

    def _step(self) -> None:
        self.engine.step(self.max_iterations, UNSEEN_SECONDS)

    def _add_requests(self, num_steps: int) -> None:
        speculation = SPECULATION[self.name]
        longest = 1 if speculation is None else speculation.max_depth + 1
        for index in range(self.batch_size):
            prompt = PROMPTS[index % len(PROMPTS)].text
            params = replace(
                self.engine.default_params,
                max_tokens=min(num_steps * longest + 1, self.engine.max_model_len // 2),
                temperature=0.8,
                seed=index,
                ignore_eos=True,
            )
            self.engine.add_request(str(index), prompt, params)


def build_parser() -> LineParser:
    """The options."""
    parser = LineParser(
        prog="python -m benchmarks.host_overhead", description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument("--model", default=BUNDLED_MODEL, metavar="DIR", help="(%(default)s)")
    parser.add_argument("--batch-sizes", nargs="+", type=integer, default=[1, 4, 16], metavar="B")
    parser.add_argument("--modes", nargs="+", choices=SPECULATION, default=list(SPECULATION))
    parser.add_argument(
        "--in-a-row",
        nargs="+",
        type=integer,
        default=[1, MAX_ITERATIONS],
        metavar="N",
        help="most iterations of a step (%(default)s)",
    )
    parser.add_argument("--steps", type=integer, default=40, help="per turn (%(default)s)")
    parser.add_argument("--turns", type=integer, default=5, help="(%(default)s)")
    parser.add_argument("--num-threads", type=integer, metavar="N", help="none: all usable cores")
    add_debug(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measures and returns the exit code."""
    return run_alone(build_parser(), run, argv)


def run(args: argparse.Namespace) -> int:
    """Measures and prints a table.

    Raises:
        ConfigError: a number is out of range, or requests are too short for so many steps.
    """
    in_a_row = [("--in-a-row", number) for number in args.in_a_row]
    for name, value in (("--steps", args.steps), ("--turns", args.turns), *in_a_row):
        check_int(ConfigError, name, value, 1)
    cases = [
        Case.open(args.model, name, batch_size, max_iterations, args.num_threads)
        for batch_size in args.batch_sizes
        for name in args.modes
        for max_iterations in args.in_a_row
    ]
    for turn in range(args.turns):
        for case in cases[:: 1 if turn % 2 == 0 else -1]:
            case.run(args.steps)
    conditions: dict[str, Any] = describe_machine(
        "python -m benchmarks.host_overhead", args.num_threads, with_limits=False
    )
    print(as_lines(conditions))
    print("medians per iteration, microseconds; row: iterations of a step, at most and seen;")
    print("share: of the whole; native: calls of C functions")
    print("batch  mode      row   seen     step  outside  share   goal  Python  calls  native")
    for case in cases:
        print(row(case))
    return 0


def row(case: Case) -> str:
    """One line of the table."""
    tally = case.tally
    step, outside, goal = median(tally.step_s), tally.outside_s, tally.goal_s
    return (
        f"{case.batch_size:5}  {case.name:8}{case.max_iterations:5}"
        f"{median(tally.num_iterations):7.1f}{1e6 * step:9.0f}{1e6 * outside:9.1f}"
        f"{outside / step:7.0%}{1e6 * goal:7.0f}{1e6 * tally.python_s:8.1f}"
        f"{median(tally.num_calls):7.0f}{median(tally.num_native_calls):8.0f}"
    )


if __name__ == "__main__":
    sys.exit(main())
