"""The results page: slices merged, text and plots from JSON alone, the README's headline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import generate, generate_runs, results
from sdengine.core.cost_model import CostModel
from sdengine.errors import ConfigError
from tests.benchmarks.fakes import FakeEngine

pytest.importorskip("matplotlib")


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page of two methods, measured on fakes."""
    monkeypatch.setattr(
        generate_runs,
        "open_engine",
        lambda args, config, size: FakeEngine(("ab",) * 8, is_speculative=config is not None),
    )
    costs = CostModel((1, 2), (1e-3, 2e-3), 1e-4, 1e-4)
    monkeypatch.setattr(generate_runs, "measured_costs", lambda engine: costs)
    monkeypatch.setattr(results, "COMMON", ["--held-out", "2", "--repeats", "1"])
    monkeypatch.setattr(generate, "describe_machine", machine)
    directory = tmp_path / "results" / "some-machine"
    assert results.main(["dyspec", "ngram", "--out", str(directory)]) == 0
    return directory


def machine(command: str, num_threads: object, with_limits: bool, device: str) -> dict[str, object]:
    return {
        "command": command,
        "commit": "abc",
        "processor": "Some CPU",
        "instruction set": "avx2",
        "threads": 2,
        "versions": "sdengine 0",
        "machine limits": "DRAM 1 GB/s",
    }


def test_slices_are_kept_with_their_commands_and_merged(page: Path) -> None:
    document = json.loads((page / "generate-ngram.json").read_text())
    assert document["conditions"]["command"].startswith("sdengine bench generate --methods ngram")
    merged = results.merged_speeds(page)
    first = [r for r in merged["rows"] if r["temperature"] == 0.0]
    methods = [r["method"] for r in first]
    budgets = len(results.BUDGETS) - 1
    assert methods.count("plain") == 1
    assert methods.count("dyspec") == methods.count("ngram") == budgets
    assert methods == sorted(methods, key=["plain", "dyspec", "ngram"].index)


def test_the_page_is_made_from_json_alone(page: Path) -> None:
    text = (page / "README.md").read_text()
    plot = (page / "speedup.svg").read_text()
    for path in page.glob("*.svg"):
        path.unlink()
    (page / "README.md").unlink()
    assert results.main(["--render-only", "--out", str(page)]) == 0
    assert (page / "README.md").read_text() == text
    assert (page / "speedup.svg").read_text() == plot
    assert "| T | plain tok/s | DySpec, adaptive | best of that run |" in text
    assert "![costs](costs.svg)" in text and "Some CPU" in plot


def test_the_readme_gets_the_table_and_the_plot_of_a_page(page: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- headline -->\nold\n<!-- end of headline -->\nafter\n")
    results.update_readme(page, readme)
    text = readme.read_text()
    assert text.startswith("before\n<!-- headline -->\n") and text.endswith("-->\nafter\n")
    assert "old" not in text and "results/some-machine/speedup.svg" in text
    assert "2 held-out prompts" in text and "DRAM 1 GB/s, commit abc:" in text
    once = text
    results.update_readme(page, readme)
    assert readme.read_text() == once
    readme.write_text("nothing")
    with pytest.raises(ConfigError, match="markers"):
        results.update_readme(page, readme)


def test_slices_of_other_commits_are_told_apart(page: Path, tmp_path: Path) -> None:
    path = page / "generate-ngram.json"
    document = json.loads(path.read_text())
    document["conditions"] |= {"commit": "def with changes", "machine limits": "DRAM 2 GB/s"}
    document["rows"][0]["tokens_per_s"] = 12345.0
    path.write_text(json.dumps(document))
    assert results.main(["--render-only", "--out", str(page)]) == 0
    text = (page / "README.md").read_text()
    assert "- commit: abc\n" in text and "- commit, ngram: def with changes\n" in text
    assert "- machine limits, ngram: DRAM 2 GB/s\n" in text and "versions, ngram" not in text
    assert "- plain tokens/s, ngram: 12345 (T 0, batch 1), " in text
    readme = tmp_path / "README.md"
    readme.write_text("<!-- headline -->\n<!-- end of headline -->\n")
    results.update_readme(page, readme)
    assert "commit abc (ngram: def with changes):" in readme.read_text()


def test_every_section_says_where_its_figures_come_from() -> None:
    conditions = {"command": "c", "machine limits": "DRAM 1 GB/s", "date": "d", "commit": "abc"}
    for section, name in (
        (results.probe_section, "verdicts"),
        (results.kernels_section, "measurements"),
    ):
        assert "`c`: DRAM 1 GB/s, d, commit abc" in section({"conditions": conditions, name: []})


def test_a_headline_is_of_a_page_in_the_clone(
    page: Path, tmp_path: Path, monkeypatch, capfd
) -> None:
    monkeypatch.setitem(results.SLICES, "probe", None)
    assert results.main(["probe", "--headline", "--out", str(page)]) == 2
    assert "--headline of a page below" in capfd.readouterr().err
    monkeypatch.setattr(results, "ROOT", tmp_path.resolve())
    (tmp_path / "README.md").write_text("<!-- headline -->\n<!-- end of headline -->\n")
    monkeypatch.chdir(tmp_path)
    out = str(page.relative_to(tmp_path))
    assert results.main(["--render-only", "--headline", "--out", out]) == 0
    assert f"]({out}/README.md)" in (tmp_path / "README.md").read_text()


def test_the_best_one_speculated() -> None:
    row = {"batch_size": 1, "temperature": 0.0, "tokens_per_s": 9.0, "slice": "dyspec"}
    plain = {**row, "method": "plain", "budget": "0", "ratio": 1.0, "mean_acceptance_length": 1.0}
    lucky = {**row, "method": "dyspec", "budget": "adaptive", "ratio": 1.2}
    lucky["mean_acceptance_length"] = 1.01
    fast = {**row, "method": "dyspec", "budget": "4", "ratio": 1.1, "mean_acceptance_length": 1.8}
    other = {**fast, "method": "ngram", "ratio": 1.9, "slice": "ngram"}  # of a slower minute
    rows = [plain, lucky, fast, other]
    assert results.headline_table(rows)[-1].endswith("| 1.20x | 1.10x (dyspec, 4) |")
    assert results.headline_table([plain, lucky])[-1].endswith("| 1.20x | 1.00x (plain, 0) |")


def test_an_unknown_slice_and_an_empty_page_are_refused(tmp_path: Path, capfd) -> None:
    assert results.main(["magic"]) == 2
    assert results.main(["--render-only", "--out", str(tmp_path)]) == 2
    assert capfd.readouterr().err.count("\n") == 2


def test_a_slice_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exit code 1"):
        results.keep(lambda argv: 1, [], tmp_path / "probe.json")
    assert not list(tmp_path.iterdir())
