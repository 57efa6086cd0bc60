"""A whole model of a given shape on random weights: plain decoding, and T(M), against the floor.

    python -m benchmarks.model_shape                     # 1.1B (TinyLlama's shape), bfloat16
    python -m benchmarks.model_shape --rows 1 8 32 --context 1024

The engine itself runs: embedding, attention, sampling and commit included. floor(M) = max(weight
bytes / DRAM read bandwidth, operations / peak); both limits are measured in the same run, in turns
with the passes, because a shared machine drifts. Weights are random and seeded; a checkpoint of 2.2
GB is written to a temporary directory and removed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file

from benchmarks.conditions import as_lines, describe_machine
from benchmarks.shapes import SHAPES, Shape
from sdengine import SpeculationConfig
from sdengine.cli.main import run_alone
from sdengine.cli.options import LineParser, add_debug, integer
from sdengine.core.argument import check_int
from sdengine.core.config import MAX_THREADS
from sdengine.engine import Engine
from sdengine.errors import ConfigError
from sdengine.kernels.machine_limits import LimitProbe
from sdengine.kernels.programs.program import make_pool
from sdengine.runner.costs import verify_trials

MAX_ROWS = 128  # of one forward
MAX_CONTEXT = 2**20
MODELS = {"1.1b": SHAPES["1.1b"], "0.1b": Shape(768, 2048, 8, 12, 4, 64, 16000)}


def write_checkpoint(
    directory: Path, shape: dict[str, int], context: int, device: str = "cpu"
) -> None:
    """Writes a random Llama checkpoint of a shape, one shard per layer, drawn on a device."""
    config = {
        **shape,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": context,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (directory / "config.json").write_text(json.dumps(config))
    weight_map: dict[str, str] = {}
    for shard, tensors in enumerate(_shards(shape, device)):
        name = f"model-{shard:05}.safetensors"
        save_file(tensors, directory / name)
        weight_map.update(dict.fromkeys(tensors, name))
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def _shards(shape: dict[str, int], device: str) -> Iterator[dict[str, torch.Tensor]]:
    generator = torch.Generator(device).manual_seed(0)
    size, ffn, vocab = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    kv = size // shape["num_attention_heads"] * shape["num_key_value_heads"]

    def matrix(rows: int, columns: int) -> torch.Tensor:
        numbers = torch.randn(rows, columns, generator=generator, device=device)
        return (numbers / columns**0.5).bfloat16().cpu()

    ones = torch.ones(size, dtype=torch.bfloat16)
    yield {
        "model.embed_tokens.weight": matrix(vocab, size),
        "lm_head.weight": matrix(vocab, size),
        "model.norm.weight": ones,
    }
    for layer in range(shape["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield {
            prefix + "input_layernorm.weight": ones.clone(),
            prefix + "post_attention_layernorm.weight": ones.clone(),
            prefix + "self_attn.q_proj.weight": matrix(size, size),
            prefix + "self_attn.k_proj.weight": matrix(kv, size),
            prefix + "self_attn.v_proj.weight": matrix(kv, size),
            prefix + "self_attn.o_proj.weight": matrix(size, size),
            prefix + "mlp.gate_proj.weight": matrix(ffn, size),
            prefix + "mlp.up_proj.weight": matrix(ffn, size),
            prefix + "mlp.down_proj.weight": matrix(size, ffn),
        }


def measure(engine: Engine, row_counts: list[int], rounds: int) -> list[dict[str, float]]:
    """Medians and minima over rounds in which limits and passes take turns."""
    iteration = engine.iteration
    pool = make_pool(iteration.pool.num_threads)
    probe = LimitProbe(pool)
    trials = verify_trials(iteration, row_counts)
    seconds: list[list[float]] = [[] for _ in row_counts]
    gbps: list[float] = []
    gflops: list[float] = []
    for _ in range(rounds):
        gbps += probe.dram_gbps(1)
        gflops += probe.gflops(torch.bfloat16, 1)
        for i, trial in enumerate(trials):
            trial.run()  # the first pass after another row count is not decoding's steady state
            seconds[i].append(trial.run())
    bytes_read = iteration.weights.nbytes
    rows = []
    for count, times in zip(row_counts, seconds):
        floors = {
            name: max(bytes_read / (pick(gbps) * 1e9), bytes_read * count / (pick(gflops) * 1e9))
            for name, pick in (("median", median), ("best", max))
        }
        rows.append(
            {
                "rows": count,
                "median_ms": 1e3 * median(times),
                "median_over_floor": median(times) / floors["median"],
                "best_ms": 1e3 * min(times),
                "best_over_floor": min(times) / floors["best"],
                "dram_gbps": median(gbps),
                "peak_gflops": median(gflops),
            }
        )
    return rows


def build_parser() -> LineParser:
    """The command line."""
    parser = LineParser(
        prog="python -m benchmarks.model_shape", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--shape", choices=MODELS, default="1.1b", help="(%(default)s)")
    parser.add_argument(
        "--rows", type=integer, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], metavar="M"
    )
    parser.add_argument("--context", type=integer, default=256, metavar="N", help="(%(default)s)")
    parser.add_argument("--rounds", type=integer, default=7, metavar="N", help="(%(default)s)")
    parser.add_argument("--threads", type=integer, metavar="N", help="(all usable cores)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_debug(parser)
    return parser


def check_arguments(options: argparse.Namespace) -> None:
    """Refuses what could not be measured before a checkpoint is written.

    Raises:
        ConfigError: a number is out of range.
    """
    for rows in options.rows:
        check_int(ConfigError, "--rows", rows, 1, MAX_ROWS)
    check_int(ConfigError, "--context", options.context, max(options.rows) + 1, MAX_CONTEXT)
    check_int(ConfigError, "--rounds", options.rounds, 1)
    if options.threads is not None:
        check_int(ConfigError, "--threads", options.threads, 1, MAX_THREADS)


def main(argv: list[str] | None = None) -> int:
    """Measures and returns the exit code."""
    return run_alone(build_parser(), run, argv)


def run(options: argparse.Namespace) -> int:
    """Measures a model of the shape and prints its curve."""
    check_arguments(options)
    with tempfile.TemporaryDirectory() as directory:
        write_checkpoint(Path(directory), MODELS[options.shape].as_config(), options.context)
        engine = Engine(
            directory,
            dtype="bfloat16",
            max_num_seqs=1,
            max_num_batched_tokens=MAX_ROWS,
            num_threads=options.threads,
            speculation=SpeculationConfig(
                method="ngram", max_nodes=max(max(options.rows) - 1, 1), adaptive=False
            ),
        )
        points = measure(engine, options.rows, options.rounds)
    conditions = describe_machine(
        "python -m benchmarks.model_shape", options.threads, with_limits=False
    )
    if options.json:
        print(json.dumps({"conditions": conditions, "points": points}))
    else:
        print(f"{as_lines(conditions)}\n\n{table(options.shape, points)}")
    return 0


def table(shape: str, points: list[dict[str, float]]) -> str:
    """The curve T(M), a line for every number of rows."""
    first = points[0]
    lines = [
        f"{shape} bf16, batch 1; DRAM read {first['dram_gbps']:.1f} GB/s, "
        f"peak {first['peak_gflops']:.0f} GFLOP/s (medians of this run)",
        f"rows  median ms  /floor    best ms  /floor  T(M)/T({first['rows']})",
    ]
    lines += [
        f"{p['rows']:4}  {p['median_ms']:9.2f}  {p['median_over_floor']:6.2f}"
        f"  {p['best_ms']:9.2f}  {p['best_over_floor']:6.2f}"
        f"  {p['median_ms'] / first['median_ms']:9.2f}"
        for p in points
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
