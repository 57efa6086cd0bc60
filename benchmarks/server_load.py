"""The server under load on loopback: are all texts right, is nothing lost, and what does it cost?

    python -m benchmarks.server_load --seconds 60

Clients read, cancel, drop and send nonsense; every text that is read to its end is compared with
the offline engine's for its seed. Then the same requests run once through the server and, before
and after it, through an `Engine` in this process with as many sequences at once: the server's
overhead, clients included, because they share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from urllib.request import urlopen

from benchmarks.load_clients import Case, Mix, Tally, run_clients
from sdengine import Engine, SamplingParams
from sdengine.cli.prompts import PROMPTS

MODEL = "python-completion"


def main() -> int:
    """Runs the load and prints what was seen; 1 when something was wrong."""
    args = build_parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is ended, too
    engine = Engine(MODEL, max_num_seqs=args.max_num_seqs)
    cases = make_cases(engine, args.cases, args.max_tokens)
    process, url = start_server(args.max_num_seqs)
    try:
        asyncio.run(run_clients(url, cases, args.clients))  # warm
        memory = [resident_mb(process.pid)]
        tally = Tally()
        for part in range(3):
            mixed = run_clients(
                url, cases, args.clients, seconds=args.seconds / 3, mix=Mix(), seed=part
            )
            add(tally, asyncio.run(mixed))
            memory.append(resident_mb(process.pid))
        leaked = leaked_blocks(url)
        overhead = measure_overhead(engine, cases, url, args.clients, args.repeats)
    finally:
        process.terminate()
        _, log = process.communicate(timeout=60)
    print_report(args, tally, memory, leaked, overhead)
    for line in [*tally.failures[:5], *log.splitlines()[:20]]:
        print(line, file=sys.stderr)
    return int(bool(tally.failures or leaked or log or process.returncode))


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server_load")
    for name, default, text in (
        ("--clients", 64, "requests at once"),
        ("--seconds", 30.0, "of mixed load"),
        ("--cases", 96, "different requests"),
        ("--max-tokens", 48, "per request"),
        ("--max-num-seqs", 16, "sequences at once, in the server and offline"),
        ("--repeats", 3, "of the comparison with the offline engine"),
    ):
        parser.add_argument(name, type=type(default), default=default, help=text)
    return parser


def make_cases(engine: Engine, num_cases: int, max_tokens: int) -> list[Case]:
    """Requests with the texts that the offline engine gives."""
    bodies = [
        {
            "model": MODEL,
            "prompt": PROMPTS[index % len(PROMPTS)].text,
            "max_tokens": max_tokens,
            "temperature": (0.0, 0.8)[index % 2],
            "seed": index,
            "ignore_eos": True,
        }
        for index in range(num_cases)
    ]
    texts, _ = run_offline(engine, bodies)
    return [Case(body, text) for body, text in zip(bodies, texts)]


def run_offline(engine: Engine, bodies: list[dict]) -> tuple[list[str], float]:
    """Texts of all requests, and the seconds they took together."""
    names = ("max_tokens", "temperature", "seed", "ignore_eos")
    begin = perf_counter()
    for index, body in enumerate(bodies):
        changes = {name: body[name] for name in names}
        params: SamplingParams = replace(engine.default_params, **changes)
        engine.add_request(str(index), body["prompt"], params)
    texts = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                texts[output.request_id] = output.outputs[0].text
    return [texts[str(index)] for index in range(len(bodies))], perf_counter() - begin


def start_server(max_num_seqs: int) -> tuple[subprocess.Popen[str], str]:
    """A server in a process of its own, and its URL."""
    command = [sys.executable, "-m", "sdengine.cli", "serve", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--max-num-seqs", str(max_num_seqs)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    if "http://" not in line:
        raise SystemExit(f"expected a server, got: {line}")
    return process, line.split()[-1]


def measure_overhead(
    engine: Engine, cases: list[Case], url: str, num_clients: int, repeats: int
) -> list[float]:
    """Share of time that the server adds to the offline engine's, once per repeat."""
    bodies = [case.body for case in cases]
    found = []
    for _ in range(repeats):
        before = run_offline(engine, bodies)[1]
        served = asyncio.run(run_clients(url, cases, num_clients))
        if served.failures:
            raise SystemExit(served.failures[0])
        offline_s = (before + run_offline(engine, bodies)[1]) / 2
        found.append(served.seconds / offline_s - 1)
    return found


def leaked_blocks(url: str) -> float:
    """KV blocks that are not free although nothing runs."""
    for _ in range(200):
        text = urlopen(f"{url}/metrics").read().decode()
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[:1] != "#")
        leaked = float(values["sdengine_kv_blocks"]) - float(values["sdengine_kv_blocks_free"])
        if leaked == 0 and float(values["sdengine_requests_unfinished"]) == 0:
            break
    return leaked


def resident_mb(pid: int) -> float:
    """Memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def add(total: Tally, part: Tally) -> None:
    """Adds up."""
    total.kinds += part.kinds
    total.failures += part.failures
    total.first_token_s += part.first_token_s
    total.between_tokens_s += part.between_tokens_s
    total.num_tokens += part.num_tokens
    total.seconds += part.seconds


def percentiles_ms(values: list[float]) -> str:
    """Median and 99th percentile."""
    ranked = sorted(values)
    last = ranked[min(int(0.99 * len(ranked)), len(ranked) - 1)]
    return f"p50 {1e3 * median(ranked):.1f} ms, p99 {1e3 * last:.1f} ms"


def print_report(
    args: argparse.Namespace,
    tally: Tally,
    memory: list[float],
    leaked: float,
    overhead: list[float],
) -> None:
    """All figures with their conditions."""
    num = sum(tally.kinds.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(tally.kinds.items()))
    print(f"{args.clients} clients, {tally.seconds:.0f} s, {args.max_num_seqs} sequences at once")
    print(f"requests:          {num} ({num / tally.seconds:.1f}/s): {kinds}")
    print(f"wrong or lost:     {len(tally.failures)}")
    print(f"tokens:            {tally.num_tokens / tally.seconds:.0f}/s in finished requests")
    print(f"first token:       {percentiles_ms(tally.first_token_s)}")
    print(f"between events:    {percentiles_ms(tally.between_tokens_s)}")
    print(f"KV blocks leaked:  {leaked:.0f}")
    print(f"memory, MB:        {' '.join(f'{mb:.0f}' for mb in memory)}")
    each = " ".join(f"{100 * share:.0f}%" for share in overhead)
    print(f"against offline:   {100 * median(overhead):+.0f}% time (each: {each})")


if __name__ == "__main__":
    sys.exit(main())
