"""What README.md and CONTRIBUTING.md tell a reader to type works as written."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from sdengine.cli.main import build_parser

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """Fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def commands(program: str) -> list[list[str]]:
    """Command lines of a program in the shell blocks, without comments and redirections."""
    lines = "\n".join(blocks(README + CONTRIBUTING, "sh")).splitlines()
    split = [shlex.split(line.partition(" <")[0], comments=True) for line in lines]
    return [words[1:] for words in split if words and words[0] == program]


PYTHON_BLOCKS = blocks(README, "python")
SDENGINE_COMMANDS = commands("sdengine")
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NEEDS = {"ray_serve.py": "ray"}
"""Libraries that the suite does without; tests/server/test_ray_serve.py tests this one, too."""


def test_there_is_something_to_test() -> None:
    assert len(PYTHON_BLOCKS) >= 3 and len(SDENGINE_COMMANDS) >= 6 and len(EXAMPLES) >= 3
    assert ["demo"] in commands("make") and ["test"] in commands("make")


@pytest.mark.parametrize("code", PYTHON_BLOCKS, ids=range(len(PYTHON_BLOCKS)))
def test_python_blocks_run_as_written(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    capsys.readouterr()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if path.name in NEEDS:
        pytest.importorskip(NEEDS[path.name], reason=f"needs the extra {NEEDS[path.name]!r}")
    runpy.run_path(str(path), run_name="__main__")
    out = capsys.readouterr().out
    assert out and "DIFFERENT" not in out


@pytest.mark.parametrize("argv", SDENGINE_COMMANDS, ids=" ".join)
def test_commands_parse(argv: list[str]) -> None:
    args = build_parser().parse_args(argv)
    options = getattr(args, "options", [])
    if argv[:2] == ["bench", "generate"]:
        from benchmarks.generate import build_parser as build_benchmark_parser

        build_benchmark_parser().parse_args(options)
    elif argv[:2] == ["bench", "probe"]:
        from benchmarks.probe import build_parser as build_probe_parser

        build_probe_parser().parse_args(options)
    elif argv[0] == "train":
        from sdengine.cli.options import LineParser
        from sdengine.train.options import add_arguments

        parser = LineParser()
        add_arguments(parser)
        parser.parse_args(options)
    else:
        assert not options


@pytest.mark.parametrize("target", sorted({words[0] for words in commands("make")}))
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:", MAKEFILE, re.M)


def headings(path: Path) -> set[str]:
    """What links into a Markdown file may name, as GitHub makes anchors of its headings."""
    lines = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def links(page: Path) -> list[tuple[str, str]]:
    """Paths and anchors that a page of the clone points to."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S)
    return re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text)


PAGES = [
    page
    for pattern in ("*.md", "docs/*.md", "benchmarks/results/**/README.md")
    for page in sorted(ROOT.glob(pattern))
    if links(page)
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in links(page):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in headings(target), (path, anchor)


@pytest.mark.parametrize("path", re.findall(r"`(sdengine/[\w/]+(?:\.py)?)`", CONTRIBUTING))
def test_paths_named_exist(path: str) -> None:
    assert (ROOT / path).exists()


def test_every_variable_named_is_one() -> None:
    from sdengine.core.env import VARIABLES

    named = set(re.findall(r"\bSDENGINE_[A-Z_]+\b", README + CONTRIBUTING))
    assert named <= set(VARIABLES)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    lines = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    steps = [line for line in lines if line.startswith("make ")]
    assert steps == ["make test", "make lint", "make types"]
