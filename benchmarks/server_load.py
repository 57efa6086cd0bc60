"""The server under load on loopback: are all texts right, is nothing lost, and what does it cost?

    python -m benchmarks.server_load --seconds 60

Clients read, cancel, drop and send nonsense; every text that is read to its end is compared with
the offline engine's for its seed. Then the same requests run once through the server and, before
and after it, through an `Engine` in this process with as many sequences at once. The clients share
the machine with the server, so their own processor time is told apart from its.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from urllib.request import urlopen

from benchmarks.conditions import as_lines, describe_machine
from benchmarks.load_clients import Case, Mix, Tally, run_clients
from sdengine import Engine, SamplingParams
from sdengine.cli.main import run_alone
from sdengine.cli.options import LineParser, add_debug, integer, number
from sdengine.cli.prompts import PROMPTS
from sdengine.core.argument import check_float, check_int
from sdengine.errors import ConfigError

MODEL = "python-completion"


@dataclass(frozen=True, slots=True)
class Cost:
    """What one pass over all requests took, through the engine alone and through the server.

    Args:
        offline_s, served_s: wall-clock seconds.
        offline_processor_s: of the engine alone, all its threads.
        engine_processor_s, loop_processor_s: of the server's threads.
        client_processor_s: of the clients.
    """

    offline_s: float
    served_s: float
    offline_processor_s: float
    engine_processor_s: float
    loop_processor_s: float
    client_processor_s: float

    @property
    def overhead(self) -> float:
        """Share of time that the server adds, clients included."""
        return self.served_s / self.offline_s - 1

    @property
    def processor_overhead(self) -> float:
        """Share of processor time that the server adds, clients not included."""
        server_s = self.engine_processor_s + self.loop_processor_s
        return server_s / self.offline_processor_s - 1


def main(argv: list[str] | None = None) -> int:
    """Runs the load and returns the exit code."""
    return run_alone(build_parser(), run, argv)


def check_arguments(args: argparse.Namespace) -> None:
    """Refuses loads that could not be run.

    Raises:
        ConfigError: a number is out of range.
    """
    for name in ("clients", "cases", "max_tokens", "max_num_seqs", "repeats"):
        check_int(ConfigError, "--" + name.replace("_", "-"), getattr(args, name), 1)
    check_int(ConfigError, "--num-threads", args.num_threads, 0)
    check_float(ConfigError, "--seconds", args.seconds, 0.0)


def run(args: argparse.Namespace) -> int:
    """Runs the load and prints what was seen; 1 when something was wrong."""
    check_arguments(args)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is ended, too
    engine = Engine(MODEL, max_num_seqs=args.max_num_seqs, num_threads=args.num_threads or None)
    cases = make_cases(engine, args.cases, args.max_tokens)
    process, url = start_server(args)
    try:
        run_clients(url, cases, args.clients)  # warm
        memory = [resident_mb(process.pid)]
        tally = Tally()
        for part in range(3):
            seconds = args.seconds / 3
            tally.add(run_clients(url, cases, args.clients, seconds=seconds, mix=Mix(), seed=part))
            memory.append(resident_mb(process.pid))
        leaked = leaked_blocks(url)
        costs = [
            measure_cost(engine, cases, url, process.pid, args.clients) for _ in range(args.repeats)
        ]
    finally:
        process.terminate()
        _, log = process.communicate(timeout=60)
    command, threads = "python -m benchmarks.server_load", args.num_threads or None
    print(as_lines(describe_machine(command, threads, with_limits=False)), end="\n\n")
    print_load(args, tally, memory, leaked)
    print_costs(costs, args.cases * args.max_tokens)
    for line in [*tally.failures[:5], *log.splitlines()[:20]]:
        print(line, file=sys.stderr)
    return int(bool(tally.failures or leaked or log or process.returncode))


def build_parser() -> LineParser:
    """The options."""
    parser = LineParser(
        prog="python -m benchmarks.server_load", description=(__doc__ or "").partition("\n\n")[0]
    )
    for name, default, text in (
        ("--clients", 64, "requests at once"),
        ("--seconds", 30.0, "of mixed load"),
        ("--cases", 96, "different requests"),
        ("--max-tokens", 128, "per request"),
        ("--max-num-seqs", 16, "sequences at once, in the server and offline"),
        ("--num-threads", 0, "CPU threads of the engine, here and there; 0: as many as it chooses"),
        ("--repeats", 3, "of the comparison with the offline engine"),
    ):
        kind = number if isinstance(default, float) else integer
        text = f"{text} (%(default)s)"
        parser.add_argument(name, type=kind, default=default, metavar="N", help=text)
    add_debug(parser)
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
    return [Case(body, text) for body, text in zip(bodies, run_offline(engine, bodies))]


def run_offline(engine: Engine, bodies: list[dict]) -> list[str]:
    """Texts of all requests."""
    names = ("max_tokens", "temperature", "seed", "ignore_eos")
    for index, body in enumerate(bodies):
        changes = {name: body[name] for name in names}
        params: SamplingParams = replace(engine.default_params, **changes)
        engine.add_request(str(index), body["prompt"], params)
    texts = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                texts[output.request_id] = output.outputs[0].text
    return [texts[str(index)] for index in range(len(bodies))]


def start_server(args: argparse.Namespace) -> tuple[subprocess.Popen[str], str]:
    """A server in a process of its own, and its URL."""
    command = [sys.executable, "-m", "sdengine.cli", "serve", "--port", "0"]
    command += ["--max-num-seqs", str(args.max_num_seqs)]
    if args.num_threads:
        command += ["--num-threads", str(args.num_threads)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    if "http://" not in line:
        raise SystemExit(f"expected a server, got: {line}")
    return process, line.split()[-1]


def measure_cost(engine: Engine, cases: list[Case], url: str, pid: int, num_clients: int) -> Cost:
    """Times of all requests through the server, and through the engine before and after it."""
    bodies = [case.body for case in cases]

    def offline() -> tuple[float, float]:
        begin, processor_begin = perf_counter(), process_time()
        run_offline(engine, bodies)
        return perf_counter() - begin, process_time() - processor_begin

    before = offline()
    threads_before = thread_seconds(pid)
    served = run_clients(url, cases, num_clients)
    threads = thread_seconds(pid)
    if served.failures:
        raise SystemExit(served.failures[0])
    after = offline()
    spent = {tid: seconds - threads_before.get(tid, 0.0) for tid, seconds in threads.items()}
    return Cost(
        offline_s=(before[0] + after[0]) / 2,
        served_s=served.seconds,
        offline_processor_s=(before[1] + after[1]) / 2,
        engine_processor_s=sum(spent.values()) - spent[pid],
        loop_processor_s=spent[pid],  # the event loop runs in the process' first thread
        client_processor_s=served.processor_s,
    )


def thread_seconds(pid: int) -> dict[int, float]:
    """Processor time of each thread of a process, to the nanosecond."""
    return {
        int(path.parent.name): 1e-9 * int(path.read_text(encoding="utf-8").split()[0])
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat")
    }


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


def percentiles_ms(values: list[float]) -> str:
    """Median and 99th percentile."""
    if not values:
        return "none"
    ranked = sorted(values)
    last = ranked[min(int(0.99 * len(ranked)), len(ranked) - 1)]
    return f"p50 {1e3 * median(ranked):.1f} ms, p99 {1e3 * last:.1f} ms"


def print_load(args: argparse.Namespace, tally: Tally, memory: list[float], leaked: float) -> None:
    """What the mixed load showed, with its conditions."""
    num = sum(tally.kinds.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(tally.kinds.items()))
    threads = args.num_threads or "all"
    print(f"{args.clients} clients, {tally.seconds:.0f} s, {args.max_num_seqs} sequences at once")
    print(f"engine threads:    {threads}")
    print(f"requests:          {num} ({num / tally.seconds:.1f}/s): {kinds}")
    print(f"wrong or lost:     {len(tally.failures)}")
    print(f"tokens:            {tally.num_tokens / tally.seconds:.0f}/s in finished requests")
    print(f"first token:       {percentiles_ms(tally.first_token_s)}")
    print(f"between reads:     {percentiles_ms(tally.between_reads_s)}")
    print(f"KV blocks leaked:  {leaked:.0f}")
    print(f"memory, MB:        {' '.join(f'{mb:.0f}' for mb in memory)}")


def print_costs(costs: list[Cost], num_tokens: int) -> None:
    """The server beside the offline engine: medians per token, and every repeat's ratio."""

    def per_token(name: str) -> str:
        return f"{1e6 * median(getattr(cost, name) for cost in costs) / num_tokens:.0f} us"

    print("a token takes:     offline", per_token("offline_s"), "served", per_token("served_s"))
    print("of processors:     offline engine", per_token("offline_processor_s"), end="; ")
    print("served: engine", per_token("engine_processor_s"), end=", ")
    print("event loop", per_token("loop_processor_s"), end=", ")
    print("clients", per_token("client_processor_s"))
    for what, name in (("time", "overhead"), ("processor time", "processor_overhead")):
        shares = [getattr(cost, name) for cost in costs]
        each = " ".join(f"{100 * share:.0f}%" for share in shares)
        print(f"server adds:       {100 * median(shares):+.0f}% {what} (each: {each})")


if __name__ == "__main__":
    sys.exit(main())
