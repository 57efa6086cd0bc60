"""Buffers in a device's memory: nothing reaches the kernels, or the host, but by a copy.

The kernels are the CPU's, so every method, batch, preemption and sampler can run in full length.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

import pytest
from torch.overrides import TorchFunctionMode

from sdengine.core.config import SpeculationConfig
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import Engine
from sdengine.factory import shared_weights
from sdengine.kernels.dense_weight import DenseWeight
from sdengine.kernels.programs import device_program
from sdengine.kernels.programs.device_program import StagedProgram
from sdengine.kernels.programs.memory import StagedMemory
from sdengine.kernels.registry import OP_NAMES
from sdengine.kernels.spec import tensors_of
from sdengine.runner import iteration
from sdengine.runner.demand import row_bucket
from sdengine.runner.runner import Runner
from tests.engine.conftest import run_outputs
from tests.engine.device.conftest import MakePair

PROMPTS = [[5, 9, 5, 9, 5, 9, 5], [17], [(7 * i) % 60 + 3 for i in range(40)], [30, 31, 30]]
SAMPLERS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.8, "logprobs": 2},
    {"temperature": 1.2, "top_k": 20, "frequency_penalty": 0.5, "logit_bias": {3: 1.0}},
    {"top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2, "min_tokens": 9},
]
METHODS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "dyspec": {"max_nodes": 12, "max_depth": 4},
    "dyspec-pool": {"max_nodes": 16, "max_batch_nodes": 9, "max_depth": 3},
    "dyspec-draft-temperature": {"max_nodes": 8, "max_depth": 3, "draft_temperature": 0.5},
    "chain": {"method": "chain", "max_nodes": 5, "max_depth": 5},
    "kary": {"method": "kary", "branching": (3, 2, 1)},
    "sampled": {"method": "sampled", "branching": (2, 2, 2)},
    "ngram": {"method": "ngram", "max_nodes": 12, "min_ngram": 1},
    "ngram-pool": {"method": "ngram", "max_nodes": 12, "min_ngram": 1, "max_batch_nodes": 5},
    "dyspec-rejection": {"max_nodes": 12, "max_depth": 4, "verifier": "rejection"},
    "sampled-rejection": {"method": "sampled", "branching": (2, 2), "verifier": "rejection"},
    "ngram-rejection": {"method": "ngram", "max_nodes": 8, "verifier": "rejection"},
}


def spec_of(method: str) -> SpeculationConfig | None:
    settings = METHODS[method]
    return None if settings is None else SpeculationConfig(**{"adaptive": False, **settings})


def params_of(index: int, max_tokens: int = 20) -> SamplingParams:
    settings = {"max_tokens": max_tokens, "ignore_eos": True, "seed": index, **SAMPLERS[index]}
    return SamplingParams(**settings)


def run(engine: Engine) -> list[tuple[Any, ...]]:
    """All that a user sees of the four requests, logprobs to six digits."""
    params = [params_of(i) for i in range(len(PROMPTS))]
    outputs = run_outputs(engine, PROMPTS, params, group="all")
    return [seen(output.outputs[0]) for output in outputs]


def seen(completion: Any) -> tuple[Any, ...]:
    logprobs = None
    if completion.logprobs is not None:
        logprobs = [
            sorted((token, round(entry.logprob, 4), entry.rank) for token, entry in step.items())
            for step in completion.logprobs
        ]
    return list(completion.token_ids), completion.finish_reason, logprobs


@pytest.mark.parametrize("method", METHODS)
def test_everything_is_what_the_cpu_gives(
    make_tiny: MakePair, on_host: None, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    settings = {"speculation": spec_of(method), "max_num_seqs": 3}
    if "rejection" in method:  # whose text depends on tables that are refreshed a step later
        monkeypatch.setattr(Runner, "can_follow", lambda *_: False)
    expected = run(make_tiny("cpu", **settings))
    engine = make_tiny("triton", **settings)
    assert isinstance(engine.iteration.workspace.memory, StagedMemory)
    assert run(engine) == expected
    if "rejection" not in method:  # whose text depends on the drafts, and these on the cache
        assert run(engine) == expected, "a second time, with the prefixes cached"


@pytest.mark.parametrize("method", ["dyspec", "ngram-rejection"])
def test_capturing_graphs_between_steps_changes_nothing(
    make_tiny: MakePair, on_host: None, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Every program runs once without sequences before its first replay, in the middle of service:
    whatever that wrote would show."""
    expected = run(make_tiny("cpu", speculation=spec_of(method), max_num_seqs=3))
    captured = []

    def capture(enqueue: Any) -> Any:
        captured.append(enqueue)
        return enqueue

    monkeypatch.setattr(device_program, "capture_graph", capture)
    for module in (device_program, iteration):
        monkeypatch.setattr(module, "is_captured", lambda device: True)
    engine = make_tiny("triton", speculation=spec_of(method), max_num_seqs=3)
    usual = len(captured)
    assert run(engine) == expected
    assert len(captured) == len(engine.iteration._programs) > usual > 0


def test_every_tensor_of_a_launch_was_made_for_the_device(
    make_tiny: MakePair, on_host: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor that was made without naming a device would lie in the host's memory."""
    monkeypatch.setattr(shared_weights, "_loaded", WeakValueDictionary())
    placed: set[int] = set()

    class Naming(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if "device" in (kwargs or {}):
                placed.add(result.untyped_storage().data_ptr())
            return result

    launches = []
    kernel = StagedProgram.launch

    def launch(program: StagedProgram, op: str, **args: Any) -> None:
        launches.append(op)
        weight = args.get("weight")
        matrix = weight.matrix if isinstance(weight, DenseWeight) else None
        for name, tensor in tensors_of({**args, "matrix": matrix}):
            assert tensor.untyped_storage().data_ptr() in placed, f"{op}: {name}"
        kernel(program, op, **args)

    monkeypatch.setattr(StagedProgram, "launch", launch)
    with Naming():
        for method in ("dyspec-draft-temperature", "ngram-rejection", "dyspec-rejection"):
            run(make_tiny("triton", speculation=spec_of(method), max_num_seqs=3))
        run(make_tiny("triton", speculation=SpeculationConfig(max_nodes=4, max_depth=2)))
    assert set(launches) == set(OP_NAMES) - {"sample", "silu_and_mul", "filter_logits"}


@pytest.mark.parametrize("method", ["plain", "dyspec", "ngram"])
def test_preemption_changes_nothing(make_tiny: MakePair, on_host: None, method: str) -> None:
    settings = {"speculation": spec_of(method), "max_num_seqs": 3}
    expected = run(make_tiny("cpu", **settings))
    engine = make_tiny("triton", num_kv_blocks=10, **settings)
    preempted = []
    preempt = engine._scheduler._preempt

    def counted(sequence: Any, step: Any) -> None:
        preempted.append(sequence)
        preempt(sequence, step)

    engine._scheduler._preempt = counted
    assert run(engine) == expected
    assert preempted, "the cache was large enough after all"


def test_adaptive_budgets_change_nothing(make_tiny: MakePair, on_host: None) -> None:
    expected = run(make_tiny("cpu"))
    engine = make_tiny("triton", speculation=SpeculationConfig(max_nodes=12, max_depth=3))
    assert [tokens for tokens, *_ in run(engine)] == [tokens for tokens, *_ in expected]


def test_a_step_tree_is_read_from_the_device(make_tiny: MakePair, on_host: None) -> None:
    trees = []
    speculation = SpeculationConfig(max_nodes=12, max_depth=4, adaptive=False, calibrate=False)
    for backend in ("cpu", "triton"):
        engine = make_tiny(backend, speculation=speculation)
        engine.add_request("r", PROMPTS[0], params_of(0))
        seen_trees = []
        while engine.has_unfinished_requests():
            engine.step()
            seen_trees.append(engine.step_tree("r"))
        trees.append(seen_trees)
    assert trees[0] == trees[1] and any(tree.token_ids for tree in trees[0])


def test_programs_are_as_large_as_their_steps(make_tiny: MakePair, on_host: None) -> None:
    """No step has more rows than its program."""
    engine = make_tiny("triton", speculation=spec_of("dyspec"), max_num_seqs=3)
    run(engine)
    limits = {variant.limits.rows for variant in engine.iteration._programs}
    assert limits <= {8, 16, 32, 64, 80, 96, 128} and len(limits) > 1


def test_a_tree_and_its_root_do_not_double_a_program() -> None:
    sizes = {rows: row_bucket(rows) for rows in (1, 8, 9, 33, 64, 65, 80, 81, 97, 129, 145, 193)}
    assert list(sizes.values()) == [1, 8, 16, 64, 64, 80, 80, 96, 128, 144, 192, 256]
