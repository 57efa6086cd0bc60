"""The page: its files and headers, what its endpoint streams, and the whole of it in a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sdengine.core.config import SpeculationConfig
from sdengine.core.sampling_params import SamplingParams
from sdengine.llm import LLM
from sdengine.server.streaming import COMMENT
from tests.engine.conftest import text_checkpoint, tiny
from tests.server.browser import Browser, find_browser
from tests.server.conftest import CHAT_TEMPLATE, RunningServer, running, tiny_engine

TREES = SpeculationConfig(max_nodes=6, max_depth=3, adaptive=False)
PAGE = Path(__file__).resolve().parents[2] / "sdengine/server/page"
DATA = "data: "
EVIL = "<img src=x onerror=\"document.title='hacked'\">"


@pytest.fixture(scope="module")
def page_server() -> Iterator[RunningServer]:
    """A server that always drafts, and can compare."""
    engine = tiny_engine(speculation=TREES)
    with running(engine, tiny_engine(has_draft=False)) as handle:
        yield handle


def generate(server: RunningServer, **body: Any) -> list[dict[str, Any]]:
    with httpx.stream(
        "POST", f"{server.url}/playground/generate", json={"prompt": "def f(x):", **body}
    ) as response:
        assert response.status_code == 200
        text = "".join(response.iter_text())
    return [json.loads(part[len(DATA) :]) for part in text.split("\n\n") if part.startswith(DATA)]


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/favicon.svg"])
def test_files_come_with_a_strict_policy(server: RunningServer, path: str) -> None:
    response = httpx.get(f"{server.url}{path}")
    assert response.status_code == 200 and response.content
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy
    assert "unsafe" not in policy and "http" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"


def test_files_name_no_other_host_and_build_no_markup() -> None:
    for file in PAGE.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text and "//cdn" not in text, file
    script = (PAGE / "page.js").read_text(encoding="utf-8")
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in script
    assert "style=" not in (PAGE / "index.html").read_text(encoding="utf-8")


def test_pieces_add_up_to_the_text_and_know_where_they_came_from(
    page_server: RunningServer,
) -> None:
    llm = LLM(text_checkpoint(chat_template=CHAT_TEMPLATE), **tiny({}))
    params = SamplingParams(max_tokens=40, temperature=0.5, seed=3)
    expected = llm.generate("def f(x):", params)[0].outputs[0]
    for is_plain in (False, True):
        items = generate(page_server, max_tokens=40, temperature=0.5, seed=3, is_plain=is_plain)
        pieces = [piece for item in items for piece in item["pieces"]]
        assert "".join(piece["text"] for piece in pieces) == expected.text
        assert any(piece["draft"] for piece in pieces) is not is_plain
        assert items[-1]["end"]["num_tokens"] == 40 == len(pieces) - 1
        assert not (is_plain and shows_a_tree(items))
    # What a reader was too slow for comes with the newest tree alone, and the last step has none.
    assert any(shows_a_tree(generate(page_server, max_tokens=40, seed=3)) for _ in range(20))
    page_server.assert_idle()


READ_EVENTS = """
const nothing = () => ({ addEventListener() {} });
const fetch = () => Promise.reject();
const page = { document: { getElementById: nothing }, fetch, TextDecoderStream };
const vm = require("node:vm");
vm.createContext(page);
vm.runInContext(require("node:fs").readFileSync(process.argv[1], "utf-8"), page);
(async () => {
  const found = [];
  for await (const item of page.events(new Response(process.argv[2]))) found.push(item);
  console.log(JSON.stringify(found));
})();
"""


def test_the_script_skips_what_the_server_says_while_it_waits() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node.js is installed here: the page's script is only run in a browser")
    items = [{"pieces": []}, {"pieces": [{"text": "\n\n: waiting\n\n", "draft": False}]}]
    comment = COMMENT.decode()
    stream = comment + "".join(f"data: {json.dumps(item)}\n\n{comment}" for item in items)
    command = [node, "-e", READ_EVENTS, str(PAGE / "page.js"), stream]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == items


def shows_a_tree(items: list[dict[str, Any]]) -> bool:
    return any(item["tree"]["nodes"] for item in items)


def test_a_comparison_that_was_not_prepared_is_refused(server: RunningServer) -> None:
    body = {"prompt": "x", "is_plain": True}
    response = httpx.post(f"{server.url}/playground/generate", json=body)
    assert response.status_code == 400 and "--compare" in response.json()["error"]["message"]
    assert httpx.get(f"{server.url}/playground/about").json()["can_compare"] is False


@pytest.fixture
def browser() -> Iterator[Browser]:
    binary = find_browser()
    if binary is None:
        pytest.skip("no Chromium is installed here: the page is only tested without a browser")
    with Browser(binary) as made:
        yield made


def run_page(browser: Browser, server: RunningServer) -> None:
    browser.open(f"{server.url}/")
    browser.wait_for("document.getElementById('model').textContent === 'tiny'")
    for name, value in (("prompt", "def f(x):"), ("temperature", 0.5), ("seed", 3)):
        browser.evaluate(f"document.getElementById('{name}').value = '{value}'")
    browser.evaluate("document.getElementById('form').requestSubmit()")
    browser.wait_for("document.body.dataset.state === 'done'")


def test_the_page_in_a_browser(browser: Browser, page_server: RunningServer) -> None:
    run_page(browser, page_server)
    texts = "id => document.getElementById(id).textContent"
    error, verdict, speed = (
        browser.evaluate(f"({texts})('{name}')") for name in ("error", "verdict-text", "speed")
    )
    assert error == "" and verdict == "against plain, identical text"
    assert float(speed) > 0
    assert browser.evaluate("document.querySelectorAll('#output .draft').length") > 0
    assert browser.evaluate("document.querySelectorAll('#output .own').length") > 0
    assert browser.evaluate("document.querySelectorAll('#tree rect').length") > 1
    assert browser.complaints() == []
    page_server.assert_idle()


def test_model_text_is_never_markup(
    browser: Browser, page_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class EvilStream:
        def push(self, token_ids: object) -> str:
            return EVIL

        def finish(self) -> str:
            return EVIL

    tokenizer = type(page_server.engine.engine.tokenizer)
    monkeypatch.setattr(tokenizer, "detokenizer", lambda self, **options: EvilStream())
    run_page(browser, page_server)
    assert browser.evaluate("document.querySelectorAll('#output img').length") == 0
    assert EVIL in browser.evaluate("document.getElementById('output').textContent")
    assert "img" in browser.evaluate("document.getElementById('tree').textContent")
    assert browser.evaluate("document.title") == "sdengine"
    page_server.assert_idle()
