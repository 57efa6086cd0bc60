"""OpenVINO GenAI on a CPU: plain, and with a draft model.

The checkpoints are exported with optimum-intel's command in a process of its own, because its
requirements on transformers come and go.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.peers.contestant import Answer, Contestant, Settings, Task, left_padded
from sdengine.errors import ConfigError

__all__ = ["OpenVinoPeer"]

WEIGHT_FORMATS = {"float32": "fp32", "bfloat16": "fp16", "float16": "fp16"}
"""bfloat16 weights are exported as float16, the 16-bit format of the exporter."""
PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
CACHE_GB = 1


class OpenVinoContestant:
    """One pipeline."""

    def __init__(self, mode: str, pipeline: Any, shown: str, options: dict[str, Any]) -> None:
        self.name = f"openvino-genai {mode}"
        self.configuration = shown
        self._pipeline = pipeline
        self._options = options

    def answer(self, task: Task) -> Answer:
        """As `Contestant.answer`; times are the pipeline's own."""
        import openvino
        import openvino_genai

        tokens, mask = (openvino.Tensor(array) for array in left_padded(task.prompts))
        found = self._pipeline.generate(
            openvino_genai.TokenizedInputs(tokens, mask),
            max_new_tokens=task.max_tokens,
            min_new_tokens=task.max_tokens,
            ignore_eos=True,
            do_sample=False,
            repetition_penalty=1.0,  # whatever the checkpoint's generation_config.json asks for
            **self._options,
        )
        metrics = found.perf_metrics
        decode_ms = metrics.get_generate_duration().mean - metrics.get_ttft().mean
        added = tuple(tuple(map(int, row)) for row in found.tokens)
        return Answer(added, decode_ms / 1e3, sum(map(len, added)) - len(added))

    def close(self) -> None:
        """Drops the pipeline."""
        self._pipeline = None


class OpenVinoPeer:
    """Exports with optimum-intel, runs with openvino-genai."""

    name = "openvino-genai"

    def why_unavailable(self, settings: Settings) -> str | None:
        """A package is missing."""
        if find_spec("openvino_genai") is None:
            return "openvino-genai is not installed (pip install openvino-genai)"
        if find_spec("optimum") is None or find_spec("optimum.intel") is None:
            return "the export needs optimum-intel (pip install optimum-intel)"
        return None

    def contestants(self, settings: Settings) -> Iterator[Contestant]:
        """Plain, then each draft length."""
        import openvino_genai

        target = _exported(settings.target, settings)
        draft = _exported(settings.draft, settings)
        properties = {
            "INFERENCE_NUM_THREADS": settings.num_threads,
            "INFERENCE_PRECISION_HINT": PRECISIONS[settings.dtype],
            "PERFORMANCE_HINT": "LATENCY",
        }
        shown = (
            f"{WEIGHT_FORMATS[settings.dtype]} weights, precision hint "
            f"{PRECISIONS[settings.dtype]}, {settings.num_threads} threads, latency hint, "
            f"openvino-genai {openvino_genai.__version__}"
        )
        plain = openvino_genai.LLMPipeline(str(target), "CPU", **properties)
        yield OpenVinoContestant("plain", plain, shown, {})
        if not settings.draft_lengths:
            return
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GB
        drafted = openvino_genai.LLMPipeline(
            str(target),
            "CPU",
            draft_model=openvino_genai.draft_model(str(draft), "CPU", **properties),
            scheduler_config=scheduler,
            **properties,
        )
        for length in settings.draft_lengths:
            options = {"num_assistant_tokens": length}
            text = f"{shown}, {length} draft tokens"
            yield OpenVinoContestant(f"draft {length}", drafted, text, options)


def _exported(source: Path, settings: Settings) -> Path:
    """The checkpoint in OpenVINO's format, made unless the work directory has it.

    Raises:
        ConfigError: the exporter failed; its last line is in the message.
    """
    weights = WEIGHT_FORMATS[settings.dtype]
    newest = max(file.stat().st_mtime_ns for file in source.iterdir())
    key = hashlib.sha256(f"{source.resolve()} {newest} {weights}".encode()).hexdigest()[:16]
    target = settings.work_dir / f"{source.name}-{key}-openvino"
    if target.is_dir():
        return target
    staged = target.with_suffix(".partial")
    shutil.rmtree(staged, ignore_errors=True)
    command = [
        *(sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino"),
        *("--model", str(source), "--task", "text-generation-with-past"),
        *("--weight-format", weights, str(staged)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not (staged / "openvino_model.xml").is_file():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError.from_parts("optimum-intel to export the checkpoint", last)
    staged.rename(target)
    return target
