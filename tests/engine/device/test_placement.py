"""Where an engine runs is chosen by name, refusals say why, and what does not fit its sizes."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

import pytest
import torch

from sdengine.core.config import EngineConfig
from sdengine.errors import BackendUnavailable, CacheFull, ConfigError
from sdengine.factory import shared_weights
from sdengine.factory.sizes import choose_dtype
from sdengine.kernels import backends, cuda_library
from sdengine.kernels.calibration import identity_table
from sdengine.kernels.draft_topk import device_scratch_size
from sdengine.kernels.programs.memory import HostMemory, StagedMemory
from sdengine.kernels.spec import tensors_of
from sdengine.runner import device_fit
from sdengine.runner.device_fit import Needs
from sdengine.runner.placement import Placement, choose_placement
from sdengine.runner.workspace import Sizes, Workspace
from tests.engine.device.conftest import MakePair

GIB = 2**30


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs with every kernel, as far as names are concerned."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backends, "why_unavailable", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


def placed(device: str, backend: str | None) -> tuple[str, str, bool]:
    placement = choose_placement(EngineConfig("m", device=device, backend=backend), None)
    return placement.backend, str(placement.memory.device), placement.is_device


@pytest.mark.parametrize(
    "device,backend,expected",
    [
        ("auto", None, ("cpu", "cpu", False)),
        ("cpu", "reference", ("reference", "cpu", False)),
        ("cuda", None, ("triton", "cuda:1", True)),
        ("cuda:0", "cuda", ("cuda", "cuda:0", True)),
        ("auto", "triton", ("triton", "cuda:1", True)),
    ],
)
def test_device_and_backend_choose_one_another(
    gpus: None, device: str, backend: str | None, expected: tuple[str, str, bool]
) -> None:
    assert placed(device, backend) == expected


@pytest.mark.parametrize(
    "device,backend,error,words",
    [
        ("cuda:2", None, ConfigError, '"cuda:0" to "cuda:1", got \'cuda:2\''),
        ("cuda", "cpu", ConfigError, 'backend "triton" or "cuda" on device \'cuda\''),
        ("cpu", "triton", BackendUnavailable, "on device 'cpu': .*TRITON_INTERPRET=1"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    gpus: None, device: str, backend: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        placed(device, backend)


@pytest.mark.parametrize(
    "device,backend,words",
    [
        ("auto", "cuda", "backend 'cuda': torch finds no CUDA device; backends 'cpu' and"),
        ("cuda:0", None, "device 'cuda:0': torch finds no CUDA device; device 'cpu' is"),
    ],
)
def test_without_a_gpu_the_error_speaks_of_what_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, device: str, backend: str | None, words: str
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailable, match=f"^{words}"):
        placed(device, backend)


def test_a_gpu_and_the_interpreter_exclude_each_other(
    gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BackendUnavailable, match="'cuda': its kernels do not run with TRITON_INT"):
        placed("cuda", None)
    assert placed("auto", "triton") == ("triton", "cpu", True)
    assert isinstance(choose_placement(EngineConfig("m"), None).memory, HostMemory)


@pytest.mark.parametrize("device,backend", [("auto", None), ("cpu", "reference")])
def test_graphs_are_refused_where_there_are_none(device: str, backend: str | None) -> None:
    config = EngineConfig("m", device=device, backend=backend, conditional_graphs=True)
    with pytest.raises(ConfigError, match="conditional_graphs=False on a CPU"):
        choose_placement(config, None)


def test_branches_are_made_on_request(gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_library, "load_cuda", object)
    config = EngineConfig("m", device="cuda")
    assert choose_placement(config, None).branches is None
    asked = config.with_changes(conditional_graphs=True)
    assert choose_placement(asked, None).branches is not None


def test_the_environment_s_backend_counts_when_none_was_given(gpus: None) -> None:
    assert choose_placement(EngineConfig("m"), "triton").backend == "triton"
    assert choose_placement(EngineConfig("m", backend="cpu"), "triton").backend == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_bfloat16_is_refused_in_the_interpreter(make_tiny: MakePair) -> None:
    with pytest.raises(ConfigError, match='dtype "float32"'):
        make_tiny("triton", dtype="bfloat16")


@pytest.mark.parametrize(
    "used,largest,is_bfloat16",
    [
        ("avx512_bf16", "avx512_bf16", True),
        ("avx512", "avx512_bf16", True),
        ("avx2", "avx512_bf16", False),
        ("avx512", "avx512", False),
        ("avx2", "avx2", False),
    ],
)
def test_a_checkpoint_becomes_bfloat16_on_cpus_that_have_it(
    monkeypatch: pytest.MonkeyPatch, used: str, largest: str, is_bfloat16: bool
) -> None:
    native = SimpleNamespace(selected_isa=lambda: used, detected_isa=lambda: largest)
    monkeypatch.setattr("sdengine.runner.placement.load_cpu", lambda: native)
    cpu, asked = Placement("cpu", HostMemory()), EngineConfig("m")
    for name in ("float32", "bfloat16", "float16"):
        expected = torch.bfloat16 if is_bfloat16 else getattr(torch, name)
        assert choose_dtype(asked, name, cpu) == expected
    assert choose_dtype(EngineConfig("m", dtype="float16"), "float32", cpu) == torch.float16
    other = Placement("reference", HostMemory())
    assert choose_dtype(asked, "float16", other) == torch.float16


def test_the_interpreter_stands_for_a_gpu_in_float32_unless_asked() -> None:
    interpreter = Placement("triton", StagedMemory(torch.device("cpu")))
    assert choose_dtype(EngineConfig("m"), "bfloat16", interpreter) == torch.float32
    asked = EngineConfig("m", dtype="float16")
    assert choose_dtype(asked, "bfloat16", interpreter) == torch.float16


NEEDS = Needs(weights=16 * GIB, buffers=1 * GIB, trees=GIB // 2, block=GIB // 100)


def test_blocks_take_what_weights_buffers_and_trees_leave() -> None:
    room = int(24 * GIB * 0.92) - 17 * GIB - GIB // 2
    assert NEEDS.fitting_blocks(24 * GIB, wanted=10_000) == room // (GIB // 100)
    assert NEEDS.fitting_blocks(24 * GIB, wanted=50) == 50
    assert NEEDS.fitting_blocks(24 * GIB, wanted=50, asked=70) == 70


@pytest.mark.parametrize("free,asked", [(18, None), (24, 5000)])
def test_what_does_not_fit_is_told_in_sizes(free: int, asked: int | None) -> None:
    kv = "50.00 GiB of KV cache (5000 blocks)" if asked else "0.01 GiB of KV cache (1 blocks)"
    sizes = f"16.00 GiB of weights, 1.00 GiB of buffers, 0.50 GiB of trees and {kv}"
    words = f"within 92% of the {free}.00 GiB of device memory that are free, got {sizes}"
    with pytest.raises(CacheFull, match=re.escape(words)) as raised:
        NEEDS.fitting_blocks(free * GIB, wanted=100, asked=asked)
    assert ("num_kv_blocks" in str(raised.value)) == (asked is not None)


@pytest.fixture
def needs(monkeypatch: pytest.MonkeyPatch) -> list[Needs]:
    """What the engines of a test said they need; weights of others are not there."""
    seen: list[Needs] = []

    def recorded(*args: Any) -> Needs:
        seen.append(device_fit.device_needs(*args))
        return seen[-1]

    monkeypatch.setattr("sdengine.factory.sizes.device_needs", recorded)
    monkeypatch.setattr(shared_weights, "_loaded", WeakValueDictionary())
    return seen


def test_an_engine_takes_as_many_blocks_as_the_device_has_room_for(
    make_tiny: MakePair, needs: list[Needs], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.device] = []

    def free_bytes(device: torch.device) -> int:
        asked.append(device)
        if not needs[:-1]:
            return GIB
        taken = needs[0].buffers + needs[0].trees  # weights are there
        return int((taken + 3.5 * needs[0].block) / 0.92)

    monkeypatch.setattr("sdengine.factory.sizes.free_bytes", free_bytes)
    assert make_tiny("triton").num_blocks > 3
    assert make_tiny("triton").num_blocks == 3
    assert {device.type for device in asked} == {"cpu"}
    monkeypatch.setattr("sdengine.factory.sizes.free_bytes", lambda device: 1 << 14)
    with pytest.raises(CacheFull, match=r"within 92% of the 0\.00 GiB of device memory"):
        make_tiny("triton")


def test_needs_count_what_an_engine_really_allocates(
    make_tiny: MakePair, needs: list[Needs]
) -> None:
    engine = make_tiny("triton")
    iteration = engine.iteration
    weights = iteration.weights.nbytes + iteration.weights.embed.nbytes
    assert weights <= needs[0].weights <= 1.2 * weights
    assert make_tiny("triton").iteration.weights is iteration.weights
    assert needs[1] == replace(needs[0], weights=0)
    large = [iteration.workspace.logits, *vars_of(iteration._buffers)]
    assert needs[0].buffers >= sum(tensor.nbytes for tensor in large)
    assert needs[0].block * engine.num_blocks == iteration._cache.tensor.nbytes


def test_a_device_has_weights_of_its_own(make_tiny: MakePair) -> None:
    host, reference, device = map(make_tiny, ("cpu", "reference", "triton"))
    assert host.iteration.weights is reference.iteration.weights
    assert host.iteration.weights is not device.iteration.weights


@pytest.mark.parametrize(
    "max_nodes,max_width,num_candidates", [(1, 1, 1), (64, 16, 64), (1024, 256, 64)]
)
def test_needs_count_trees_and_their_scratch(
    max_nodes: int, max_width: int, num_candidates: int
) -> None:
    """Large trees grow in scratch, where a GPU's shared memory is too small for them."""
    sizes = Sizes(
        max_num_seqs=3,
        max_batched_tokens=8,
        max_history=16,
        block_size=8,
        num_blocks=4,
        max_blocks=4,
        vocab_size=1,
        max_nodes=max_nodes,
        max_depth=1,
        num_candidates=num_candidates,
        max_width=max_width,
        num_stop_tokens=1,
    )
    workspace = Workspace.allocate(sizes, identity_table(), HostMemory())
    trees = [workspace.draft_tree, workspace.token_tree]
    tensors = [tensor for tree in trees for _, tensor in tensors_of({"tree": tree})]
    taken = sum(tensor.nbytes for tensor in (*tensors, workspace.tree_scratch))
    proposed = 3 * max_width * (8 * num_candidates + 4)  # and logits of one token
    topk = 8 * device_scratch_size(3 * max_width, num_candidates)
    needed = device_fit.device_needs(sizes, [], [], torch.float32).trees
    assert taken + proposed + topk <= needed <= 1.1 * (taken + proposed + topk)


def vars_of(buffers) -> list[torch.Tensor]:
    return [getattr(buffers, name) for name in buffers.__slots__]


def test_memory_that_torch_keeps_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [10]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.append(70))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[-1], 80))
    assert device_fit.free_bytes(torch.device("cuda", 0)) == 70
