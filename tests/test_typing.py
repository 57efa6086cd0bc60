"""What a type checker makes of programs that use the public interface."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sdengine

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """\
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from sdengine import (
    LLM,
    AsyncEngine,
    CompletionOutput,
    Engine,
    EngineConfig,
    RequestMetrics,
    RequestOutput,
    SamplingParams,
    SpeculationConfig,
    SpeculationStats,
    StepTree,
    StreamDelta,
)
from sdengine.errors import RequestError, SdengineError

import sdengine

params = SamplingParams(n=2, stop=["a"], stop_token_ids=[1], logit_bias={5: 1.0})
speculation = SpeculationConfig(method="kary", branching=(2, 2))
llm: LLM = LLM("model", draft=Path("draft"), max_num_seqs=2, speculation=speculation)
outputs: list[RequestOutput] = llm.generate(["a", "b"], [params, params])
text: str = outputs[0].outputs[0].text
token_ids: Sequence[int] = outputs[0].outputs[0].token_ids
logprobs = outputs[0].outputs[0].logprobs
logprob: float = 0.0 if logprobs is None else logprobs[0][5].logprob
metrics: RequestMetrics = outputs[0].metrics
stats: SpeculationStats | None = metrics.speculation
for delta in llm.stream("x", params):
    last: StreamDelta = delta
llm.chat([{"role": "user", "content": "x"}], params)
llm.generate([1, 2, 3], params)
many: list[list[int]] = [[1], [2]]
llm.generate(many)

engine = Engine(EngineConfig(Path("model"), max_num_seqs=3))
other = Engine(Path("model"), num_threads=2, speculation=None)
try:
    engine.add_request("a", "x", params)
except (RequestError, SdengineError, sdengine.errors.CacheFull) as error:
    print(error)
for output in engine.step():
    tree: StepTree | None = engine.step_tree(output.request_id)


async def texts(engine: AsyncEngine) -> AsyncIterator[str]:
    async for output in engine.generate("x", params):
        completion: CompletionOutput = output.outputs[0]
        yield completion.text


async def main() -> None:
    async with AsyncEngine(engine, max_requests=3) as asynchronous:
        async for text in texts(asynchronous):
            print(text)
        async with await asynchronous.submit("x") as stream:
            async for output in stream:
                print(output.finished)


asyncio.run(main())
"""
MISTAKES = """\
from sdengine import LLM, SamplingParams

number: int = LLM("model").generate("x")
SamplingParams(temprature=1.0)
"""
SETTINGS = """\
[mypy]
strict = true
[mypy-torch.*,numpy.*,triton.*,tokenizers.*,jinja2.*,safetensors.*]
follow_imports = skip
ignore_missing_imports = true
[mypy-sdengine.*]
follow_imports = silent
"""


def test_checkers_see_what_can_be_imported() -> None:
    tree = ast.parse((ROOT / "sdengine/__init__.pyi").read_text(encoding="utf-8"))
    seen = {
        alias.asname: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == sdengine._EXPORTS | dict.fromkeys(sdengine._SUBMODULES, "sdengine")
    assert all(hasattr(sdengine, name) for name in sdengine.__all__)
    assert {*sdengine.__all__, *sdengine._SUBMODULES} <= set(dir(sdengine))


def test_public_modules_are_attributes_and_imported_when_they_are_asked_for() -> None:
    code = (
        "import sys, sdengine\n"
        "assert {'errors', 'kernels'} <= set(dir(sdengine))\n"
        "assert not {'torch', 'sdengine.errors', 'sdengine.kernels'} & set(sys.modules)\n"
        "assert issubclass(sdengine.errors.ConfigError, Exception)\n"
        "assert 'sdengine.kernels' not in sys.modules\n"
        "assert sdengine.kernels is sys.modules['sdengine.kernels']\n"
        "assert len(dir(sdengine)) == len(set(dir(sdengine)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_strict_checker_passes_programs_and_finds_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mypy", reason="a tool of development")
    for name, text in (("program.py", PROGRAM), ("mistakes.py", MISTAKES), ("my.ini", SETTINGS)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("MYPYPATH", str(ROOT))
    command = [sys.executable, "-m", "mypy", "--config-file", "my.ini", "--cache-dir", "cache"]
    command += ["program.py", "mistakes.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    *found, _ = done.stdout.splitlines()
    assert [line.partition(" error: ")[0] for line in found] == ["mistakes.py:3:", "mistakes.py:4:"]
    assert "list[RequestOutput]" in found[0] and 'did you mean "temperature"' in found[1]
