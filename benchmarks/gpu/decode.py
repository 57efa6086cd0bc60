"""Slices decode-*: a whole model of a shape on random weights, batch 1. Plain decoding at a context
of 1024 tokens against the memory floor, the same in one of 8 slots of 131072 tokens, steps of the
target with 1, 64 and 128 nodes beside it, steps that draft with a model of a 1B shape, and a prompt
against the floor of its products.

The engine itself runs. A checkpoint is written to a temporary directory and removed.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import re
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import shapes
from benchmarks.gpu.records import Recorder, Skip, slice_main
from benchmarks.gpu.timing import Limits, measure_limits
from benchmarks.model_shape import write_checkpoint
from sdengine import SamplingParams, SpeculationConfig
from sdengine.controllers.fixed import FixedController
from sdengine.engine import Engine
from sdengine.errors import CacheFull
from sdengine.runner.costs import verify_trials

SHAPES = {"8b": shapes.SHAPES["8b"].as_config(), "1b": shapes.SHAPES["llama-3.2-1b"].as_config()}
CONTEXT = 1024
MODEL_LEN = 2 * CONTEXT + 256
REQUEST = "only"
STEPS = 100
PROFILED_STEPS = 20
LARGEST = 8  # kernels that a profile names
NODES = (1, 64, 128)  # beside the root's row
PROMPT = 2048
CHUNK = 512  # rows of a pass of a prompt
BUNDLED = "python-completion"
BUNDLED_CONTEXT = 256
ROOMY = {"max_num_seqs": 8, "max_model_len": 131072}  # the default slots, and Llama 3.1's tokens
DRAFT = "1b"
# Depth and nodes of a step that drafts: as adaptive budgets begin, as they go on, and the largest.
PLANS = ((2, 2), (4, 7), (4, 16), (8, 64))
PLAN_STEPS = 11  # of at most 9 tokens: the request does not end
PLAN_ROUNDS = 5  # the last is timed: a larger program serves the first steps of a plan
BRANCHED_NODES = (4, 64)  # half of eight draft layers have no rows, and hardly any
ROUNDS = 5
MEMORY_DISK = Path("/dev/shm")


def checkpoint_bytes(shape: dict[str, int]) -> int:
    """An upper bound of what a checkpoint of the shape takes."""
    size, ffn = shape["hidden_size"], shape["intermediate_size"]
    layer = 4 * size * size + 3 * size * ffn
    return 2 * (shape["num_hidden_layers"] * layer + 2 * shape["vocab_size"] * size)


def roomiest(needed: int) -> Path:
    """A directory for a checkpoint: in memory where it fits twice.

    Raises:
        Skip: neither memory nor disk has room.
    """
    for folder, factor in ((MEMORY_DISK, 2.0), (Path(tempfile.gettempdir()), 1.1)):
        if folder.is_dir() and shutil.disk_usage(folder).free > factor * needed:
            return folder
    raise Skip(f"no room for a checkpoint of {needed / 1e9:.0f} GB")


class Model:
    """The checkpoint of a shape, and one engine at a time; that without speculation is kept.

    Args:
        shape: of SHAPES.
    """

    def __init__(self, shape: dict[str, int]) -> None:
        self.shape = shape
        self._stack = contextlib.ExitStack()
        self._folder: Path | None = None
        self._plain: Engine | None = None

    def folder(self) -> Path:
        """The checkpoint's directory, written when it is first asked for."""
        if self._folder is None:
            parent = roomiest(checkpoint_bytes(self.shape))
            made = self._stack.enter_context(tempfile.TemporaryDirectory(dir=parent))
            write_checkpoint(Path(made), self.shape, ROOMY["max_model_len"], "cuda")
            self._folder = Path(made)
        return self._folder

    def plain(self) -> Engine:
        """The engine without speculation, with nothing to do.

        Raises:
            Skip: as for `make`.
        """
        if self._plain is None:
            self._plain = self.make(None)
        if self._plain.has_unfinished_requests():
            self._plain.abort_request(REQUEST)
        return self._plain

    def make(
        self, speculation: SpeculationConfig | None, draft: Model | None = None, **settings: int
    ) -> Engine:
        """An engine on the device.

        Args:
            speculation: None for plain decoding.
            draft: the draft model, if any.
            settings: in place of one slot and MODEL_LEN tokens.

        Raises:
            Skip: the model does not fit here. Whatever else is wrong is a failure.
        """
        self._plain = None
        Engine(BUNDLED, device="cuda")  # before gigabytes are written
        try:
            return Engine(
                str(self.folder()),
                device="cuda",
                dtype="bfloat16",
                draft=None if draft is None else str(draft.folder()),
                max_num_batched_tokens=CHUNK,
                speculation=speculation,
                **{"max_num_seqs": 1, "max_model_len": MODEL_LEN, **settings},
            )
        except CacheFull as error:
            raise Skip(f"the model does not fit here: {error}") from None

    def close(self) -> None:
        """Removes the checkpoint."""
        self._stack.close()


def begin_decoding(engine: Engine, vocab_size: int, context: int) -> None:
    """One sequence of so many tokens that has begun to decode."""
    prompt = torch.randint(3, vocab_size, (context,)).tolist()
    params = SamplingParams(max_tokens=STEPS + 20, temperature=0, ignore_eos=True)
    engine.add_request(REQUEST, prompt, params)
    while engine.has_unfinished_requests():
        outputs = engine.step()
        if outputs and len(outputs[0].outputs[0].token_ids) >= 10:
            break


def plain_steps(model: Model, limits: Limits) -> dict[str, Any]:
    """Whole steps of plain decoding, host included, at CONTEXT tokens and after."""
    return timed_plainly(model, model.plain(), limits)


def roomy_steps(model: Model, limits: Limits) -> dict[str, Any]:
    """The same in an engine with room for more: what a step takes should not depend on that."""
    return timed_plainly(model, model.make(None, **ROOMY), limits)


def timed_plainly(model: Model, engine: Engine, limits: Limits) -> dict[str, Any]:
    """Plain steps of an idle engine, beside what reading weights and cache takes."""
    begin_decoding(engine, model.shape["vocab_size"], CONTEXT)
    times = step_times(engine, STEPS)
    weights = engine.iteration.weights.nbytes
    layers, heads = model.shape["num_hidden_layers"], model.shape["num_key_value_heads"]
    head_dim = model.shape["hidden_size"] // model.shape["num_attention_heads"]
    cache = CONTEXT * layers * heads * head_dim * 4
    floor_ms = limits.floor_us(weights + cache) / 1e3
    step_ms = median(times)
    return {
        "step ms": round(step_ms, 4),
        "tokens/s": round(1e3 / step_ms, 1),
        "weights GB": round(weights / 1e9, 3),
        "cache MB": round(cache / 1e6, 1),
        "floor ms": round(floor_ms, 4),
        "% of floor": round(100 * floor_ms / step_ms, 1),
    }


def prompts(model: Model, limits: Limits) -> dict[str, Any]:
    """Prompts until their first token, in chunks, beside their products at the measured peak."""
    engine = model.plain()
    params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
    times = []
    for _ in range(ROUNDS):
        prompt = torch.randint(3, model.shape["vocab_size"], (PROMPT,)).tolist()
        start = time.perf_counter()
        engine.add_request(REQUEST, prompt, params)
        while engine.has_unfinished_requests():
            engine.step()
        times.append(1e3 * (time.perf_counter() - start))
    head = model.shape["vocab_size"] * model.shape["hidden_size"]  # for one row alone
    operations = 2 * PROMPT * (engine.iteration.weights.nbytes // 2 - head)
    floor_ms = operations / limits.bf16_tflops / 1e9
    took = median(times[1:])
    return {
        "tokens": PROMPT,
        "rows of a pass": CHUNK,
        "prompt ms": round(took, 2),
        "tokens/s": round(1e3 * PROMPT / took),
        "products ms": round(floor_ms, 2),
        "% of peak": round(100 * floor_ms / took, 1),
    }


def busy_share(intervals: list[tuple[float, float]]) -> float:
    """Share of the time from the first start to the last end in which at least one is running."""
    busy, reached = 0.0, -math.inf
    for start, end in sorted(intervals):
        busy += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return busy / (reached - min(start for start, _ in intervals))


def kernel_name(name: str) -> str:
    """What a kernel is called in the source; copies keep their name."""
    found = re.search(r"(\w+)_kernel\b", name)
    return found[1] if found else name[:40]


def exposed_us(spans: list[tuple[str, float, float]]) -> dict[str, float]:
    """What each kernel adds to the time at which everything has ended, the largest first. Kernels
    that begin early wait for others: how long they run says little.

    Args:
        spans: name, start and end in microseconds.
    """
    added: dict[str, float] = {}
    reached = min(start for _, start, _ in spans)
    for name, _, end in sorted(spans, key=lambda span: span[1]):
        added[name] = added.get(name, 0.0) + max(end - reached, 0.0)
        reached = max(reached, end)
    return dict(sorted(added.items(), key=lambda item: -item[1]))


def profiled_steps(model: Model) -> dict[str, Any]:
    """Gaps on the device and waits of the host in plain steps, as a profile shows them."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    engine = model.plain()
    begin_decoding(engine, model.shape["vocab_size"], CONTEXT)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(PROFILED_STEPS):
            engine.step()
        torch.cuda.synchronize()
    events = profiler.events()
    assert events is not None
    on_device = [
        (kernel_name(event.name), event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == DeviceType.CUDA
    ]
    if not on_device:
        raise Skip("the profiler saw nothing on the device; it may need other permissions")
    # For the results of the step before the one that runs; any other lets the device run dry.
    for_results = sum("EventSynchronize" in e.name for e in events)
    others = sum("Synchronize" in e.name for e in events) - for_results - 1  # ours, at the end
    share = busy_share([(start, end) for _, start, end in on_device])
    largest = list(exposed_us(on_device).items())[:LARGEST]
    return {
        "device busy %": round(100 * share, 2),
        "launches / step": round(len(on_device) / PROFILED_STEPS, 1),
        "waits for results / step": round(for_results / PROFILED_STEPS, 2),
        "other waits / step": round(others / PROFILED_STEPS, 2),
        "us / step": "; ".join(f"{name} {us / PROFILED_STEPS:.1f}" for name, us in largest),
    }


def tree_steps(model: Model) -> dict[str, Any]:
    """Programs of the target over binary trees, in turns with the plain one, by the device's own
    clock; short context."""
    config = SpeculationConfig(method="ngram", max_nodes=max(NODES), adaptive=False)
    engine = model.make(config)
    trials = verify_trials(engine.iteration, [1, *(nodes + 1 for nodes in NODES)])
    times: list[list[float]] = [[] for _ in trials]
    for _ in range(30):
        for trial, own in zip(trials, times):
            own.append(1e3 * trial.run())
    plain, *others = (median(own[5:]) for own in times)
    values = {"plain ms": round(plain, 4)}
    for nodes, took in zip(NODES, others):
        values[f"{nodes} nodes ms"] = round(took, 4)
        values[f"{nodes} nodes / plain"] = round(took / plain, 3)
    return values


def step_times(engine: Engine, num_steps: int) -> list[float]:
    """Milliseconds of steps, host included."""
    times = []
    for _ in range(num_steps):
        start = time.perf_counter()
        engine.step()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def drafting_steps(model: Model, draft: Model) -> dict[str, Any]:
    """Steps with best-first trees of a draft model, for plans as adaptive budgets make them; their
    own would end speculation, since random weights accept nothing."""
    config = SpeculationConfig(max_nodes=64, max_depth=8, adaptive=False)
    engine = model.make(config, draft)
    values: dict[str, Any] = {}
    for depth, nodes in PLANS:
        engine.controller = FixedController(depth, nodes)
        for _ in range(PLAN_ROUNDS):
            begin_decoding(engine, model.shape["vocab_size"], CONTEXT)
            times, drafting, verifying = [], [], []
            for _ in range(PLAN_STEPS):
                times += step_times(engine, 1)
                drafting.append(1e3 * engine.last_report.draft_time_s)
                verifying.append(1e3 * engine.last_report.verify_time_s)
            engine.abort_request(REQUEST)
        name = f"{depth} layers, {nodes} nodes:"
        values[f"{name} step ms"] = round(median(times), 4)
        values[f"{name} draft ms"] = round(median(drafting), 4)
        values[f"{name} verify ms"] = round(median(verifying), 4)
    return values


def branched_steps(nodes: int) -> dict[str, Any]:
    """Steps of the bundled pair with trees of so many nodes: all kernels of the draft layers
    launched, or those of layers without rows skipped by conditional nodes; in turns."""
    engines = {
        name: Engine(
            BUNDLED,
            device="cuda",
            max_num_seqs=1,
            speculation=SpeculationConfig(max_nodes=nodes, adaptive=False),
            conditional_graphs=name == "skipped",
        )
        for name in ("launched", "skipped")
    }
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            begin_decoding(engine, engine.iteration.weights.config.vocab_size, BUNDLED_CONTEXT)
            times[name] += step_times(engine, 10)  # of at most 9 tokens: the request does not end
            engine.abort_request(REQUEST)
    launched, skipped = (median(times[name]) for name in ("launched", "skipped"))
    return {
        "launched ms": round(launched, 4),
        "skipped ms": round(skipped, 4),
        "skipped / launched": round(skipped / launched, 3),
    }


def run(recorder: Recorder, options: argparse.Namespace) -> None:
    """Plain decoding first."""
    model, draft = Model(SHAPES[options.variant]), Model(SHAPES[DRAFT])
    try:
        limits = measure_limits()
        recorder.run("plain decoding", partial(plain_steps, model, limits))
        recorder.run("profile of plain steps", partial(profiled_steps, model))
        recorder.run("prompts", partial(prompts, model, limits))
        recorder.run("steps by rows", partial(tree_steps, model))
        slots = f"{ROOMY['max_num_seqs']} slots of {ROOMY['max_model_len']} tokens"
        recorder.run(f"plain decoding, {slots}", partial(roomy_steps, model, limits))
        if options.variant != DRAFT:
            case = partial(drafting_steps, model, draft)
            recorder.run(f"drafting steps, {DRAFT} draft", case)
        for nodes in BRANCHED_NODES:
            recorder.run(f"draft layers, {nodes} nodes", partial(branched_steps, nodes))
        recorder.retry_failed()  # while the checkpoint is there
    finally:
        draft.close()
        model.close()


if __name__ == "__main__":
    sys.exit(slice_main(run, case_limit_s=400.0))
