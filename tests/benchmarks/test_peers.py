"""The comparison with other engines: turns, ratios, refusals; transformers on a tiny checkpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.peers import __main__ as peers
from benchmarks.peers.comparison import compare, to_markdown
from benchmarks.peers.contestant import Answer, Contestant, Settings, Task, left_padded
from benchmarks.peers.llama_cpp import LlamaCppPeer, completion_body, parse_completions
from benchmarks.peers.llama_servers import ServerOptions, command, find_launcher
from benchmarks.peers.openvino_genai_peer import OpenVinoPeer
from benchmarks.peers.own import PLAIN, SPECULATIVE, OwnPeer
from benchmarks.peers.transformers_peer import TransformersPeer
from sdengine.errors import ConfigError

PROMPTS = [[5, 9, 5, 9, 5, 9], list(range(3, 40))]
TASKS = [Task([prompt], 20) for prompt in PROMPTS]


class FakeContestant:
    """Answers at a given speed and notes the turn."""

    def __init__(self, name: str, speed: float, tokens: tuple[int, ...], turns: list[str]) -> None:
        self.name, self.configuration = name, f"{name}'s configuration"
        self._speed, self._tokens, self._turns = speed, tokens, turns
        self.is_closed = False

    def answer(self, task: Task) -> Answer:
        self._turns.append(self.name)
        return Answer((self._tokens,) * len(task.prompts), 10 / self._speed, 10)

    def close(self) -> None:
        self.is_closed = True


def test_turns_ratios_and_texts() -> None:
    turns: list[str] = []
    same, other = (1, 2, 3, 4), (1, 2, 9, 4)
    contestants = [
        FakeContestant("plain", 10.0, same, turns),
        FakeContestant("tree", 25.0, same, turns),
        FakeContestant("peer", 5.0, other, turns),
        FakeContestant("short", 10.0, same[:3], turns),
    ]
    seen: list[int] = []
    found = compare(
        contestants,
        TASKS,
        2,
        plain="plain",
        speculative="tree",
        on_answer=lambda: seen.append(len(turns)),
    )
    assert seen == list(range(1, 17)), "progress after every answer"
    names = ["plain", "tree", "peer", "short"]
    assert turns == 2 * [*names, "tree", "peer", "short", "plain"]
    assert [s.tokens_per_s for s in found] == pytest.approx([10, 25, 5, 10])
    assert [s.over_plain for s in found] == pytest.approx([1, 2.5, 0.5, 1])
    assert [s.under_speculative for s in found] == pytest.approx([2.5, 1, 5, 2.5])
    assert [(s.num_equal, s.first_difference) for s in found] == [
        (2, None),
        (2, None),
        (0, 2),
        (0, 3),
    ]
    table = to_markdown(found)
    assert "| peer | 5.0 | 0.50x | 5.00x | 0 of 2 | token 2 |" in table
    assert "- peer: peer's configuration" in table


def test_transformers_gives_our_text_in_every_mode(settings: Settings) -> None:
    contestants = [*OwnPeer().contestants(settings), *TransformersPeer().contestants(settings)]
    assert [c.name for c in contestants] == [
        PLAIN,
        SPECULATIVE,
        "transformers plain",
        "transformers assisted",
        "transformers assisted 3",
        "transformers prompt lookup 3",
    ]
    standings = compare(contestants, TASKS, 1, plain=PLAIN, speculative=SPECULATIVE)
    for standing in standings:
        assert standing.first_difference is None, standing.name
        assert 0 < standing.tokens_per_s < 1e6
        assert "float32, 1 threads" in standing.configuration
    for contestant in contestants:
        (text,) = contestant.answer(TASKS[0]).token_ids
        assert len(text) == TASKS[0].max_tokens
        contestant.close()


def test_who_cannot_run_is_left_out_with_the_reason(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = {"transformers", "gguf", "openvino_genai", "optimum", "xllamacpp"}

    for module in ("transformers_peer", "llama_cpp", "llama_servers", "openvino_genai_peer"):
        monkeypatch.setattr(
            f"benchmarks.peers.{module}.find_spec",
            lambda name: None if name in missing else object(),
        )
    monkeypatch.setenv("PATH", "")
    assert "pip install transformers" in str(TransformersPeer().why_unavailable(settings))
    assert "pip install gguf" in str(LlamaCppPeer().why_unavailable(settings))
    assert "pip install openvino-genai" in str(OpenVinoPeer().why_unavailable(settings))
    missing -= {"gguf", "openvino_genai"}
    assert "neither llama-server in PATH" in str(LlamaCppPeer().why_unavailable(settings))
    assert "pip install optimum-intel" in str(OpenVinoPeer().why_unavailable(settings))
    nowhere = replace(settings, llama_server=Path("/no/such/program"))
    assert "/no/such/program" in str(LlamaCppPeer().why_unavailable(nowhere))
    with ExitStack() as stack:
        contestants, skipped = peers.gather(settings, ["llama.cpp", "openvino-genai"], stack)
        assert [c.name for c in contestants] == [PLAIN, SPECULATIVE]
        assert set(skipped) == {"llama.cpp", "openvino-genai"}


class FailingPeer:
    """Loads one mode, then finds that it cannot go on."""

    name = "failing"

    def __init__(self, turns: list[str]) -> None:
        self.first = FakeContestant("failing plain", 1.0, (1,), turns)

    def why_unavailable(self, settings: Settings) -> str | None:
        return None

    def contestants(self, settings: Settings) -> Iterator[Contestant]:
        yield self.first
        raise ConfigError("the conversion failed")


def test_what_fails_while_loading_is_reported_and_closed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = FailingPeer([])
    monkeypatch.setattr(peers, "PEERS", (peer,))
    with ExitStack() as stack:
        contestants, skipped = peers.gather(settings, ["failing"], stack)
        assert [c.name for c in contestants] == [PLAIN, SPECULATIVE, "failing plain"]
        assert skipped == {"failing": "the conversion failed"}
        assert not peer.first.is_closed
    assert peer.first.is_closed


def test_the_command_prints_the_table_and_who_is_missing(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(peers, "PEERS", (OpenVinoPeer(),))
    monkeypatch.setattr("benchmarks.peers.openvino_genai_peer.find_spec", lambda name: None)
    argv = ["--model", str(settings.target), "--draft", str(settings.draft)]
    argv += ["--max-tokens", "12", "--num-prompts", "1", "--repeats", "1", "--num-threads", "1"]
    argv += ["--dtype", "float32", "--cache-dir", str(tmp_path), "--peers", "openvino-genai"]
    assert peers.main(argv) == 0
    out = capsys.readouterr().out
    assert f"| {SPECULATIVE} |" in out and "openvino-genai: left out: openvino-genai is not" in out
    assert peers.main([*argv, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (table,) = document["tables"]
    assert [row["name"] for row in table["standings"]] == [PLAIN, SPECULATIVE]
    assert "openvino-genai" in table["left out"]
    for option in ("--repeats", "--batch-sizes"):
        assert peers.main([*argv, option, "0"]) == 2
    assert peers.main(["--model", str(settings.target), "--peers"]) == 2  # no draft


def test_llama_servers_command_speaks_its_versions_language(tmp_path: Path) -> None:
    plain = ServerOptions(Path("t.gguf"), 512, 3)
    drafted = replace(plain, draft=Path("d.gguf"), draft_length=4)
    words = command(Path("llama-server"), plain, "")
    assert " ".join(words) == (
        "llama-server --model t.gguf --ctx-size 512 --threads 3 --threads-batch 3 --parallel 1"
    )
    old = command(Path("llama-server"), drafted, "--draft-max N")
    assert old[len(words) :] == [
        *("--model-draft", "d.gguf", "--draft-max", "4", "--draft-p-min", "0")
    ]
    new = command(Path("llama-server"), drafted, "--spec-type\n--spec-draft-n-max N\n--draft-max")
    assert new[len(words) : len(words) + 2] == ["--spec-type", "draft-simple"]
    assert "--spec-draft-n-max" in new and "--draft-max" not in new
    with pytest.raises(ConfigError, match="neither in its --help"):
        command(Path("llama-server"), drafted, "--other")


def test_a_program_that_ends_at_once_is_reported(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\necho version: 7\necho cannot read the model\nexit 3\n")
    program.chmod(0o755)
    launcher = find_launcher(program)
    assert launcher is not None and launcher.version() == "llama-server version: 7"
    with pytest.raises(ConfigError, match="exit code 3: cannot read the model"):
        launcher.start(ServerOptions(Path("t.gguf"), 512, 1), tmp_path / "log")


def test_llama_cpps_answers() -> None:
    body = completion_body(Task([(4, 5), (6,)], 7), (1, 2))
    assert body["prompt"] == [[4, 5], [6]] and body["n_predict"] == 7 and body["temperature"] == 0
    assert body["logit_bias"] == [[1, False], [2, False]]

    def result(index: int, tokens: list[int], first_ms: float, rest_ms: float) -> dict[str, object]:
        timings = {"prompt_ms": first_ms, "predicted_ms": rest_ms, "predicted_n": len(tokens)}
        return {"index": index, "tokens": tokens, "timings": timings}

    one = parse_completions(result(0, [7, 8, 9], 100.0, 500.0))
    assert one == Answer(((7, 8, 9),), 0.5, 2) and one.tokens_per_s == 4.0
    both = [result(1, [4, 5, 6], 110.0, 300.0), result(0, [7, 8, 9], 100.0, 510.0)]
    assert parse_completions(both) == Answer(((7, 8, 9), (4, 5, 6)), 0.5, 4)
    with pytest.raises(ConfigError, match="use a newer one"):
        parse_completions({"content": "x"})


@pytest.mark.parametrize("prompts", [[[5, 6, 7], [8], [9, 10]], [[3, 4]]])
def test_shorter_prompts_are_padded_on_the_left(prompts: list[list[int]]) -> None:
    tokens, mask = left_padded(prompts)
    longest = max(map(len, prompts))
    assert tokens.shape == mask.shape == (len(prompts), longest)
    for row, prompt in enumerate(prompts):
        assert tokens[row][mask[row] == 1].tolist() == prompt
        assert mask[row].tolist() == [0] * (longest - len(prompt)) + [1] * len(prompt)


def test_a_peer_that_cannot_be_imported_is_left_out(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TransformersPeer, "why_unavailable", lambda *_: None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with ExitStack() as stack:
        found, skipped = peers.gather(settings, ["transformers"], stack)
    assert [contestant.name for contestant in found] == [PLAIN, SPECULATIVE]
    assert "import of transformers halted" in skipped["transformers"]


def test_batches_give_the_same_text_and_say_which_modes_are_missing(settings: Settings) -> None:
    together = replace(settings, batch_size=2)
    with ExitStack() as stack:
        found, skipped = peers.gather(together, ["transformers"], stack)
        assert [c.name for c in found] == [PLAIN, SPECULATIVE, "transformers plain"]
        assert "one sequence at a time" in skipped["transformers assisted, prompt lookup"]
        alone = OwnPeer().contestants(settings)
        plain = next(alone)
        stack.callback(plain.close)
        texts = [plain.answer(task).token_ids[0] for task in TASKS]
        for contestant in found:
            answer = contestant.answer(Task(PROMPTS, 20))
            assert list(answer.token_ids) == texts, contestant.name
            assert answer.num_decoded > 0 and answer.decode_s > 0
