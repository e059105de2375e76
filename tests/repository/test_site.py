"""The built site in a browser as wide as a phone: no horizontal scrolling, no error, nothing from another host.

`make docs` builds the site, and the tests of the browser are skipped without it or without Chromium.
"""

from __future__ import annotations

import functools
import http.server
import json
import queue
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "site"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

# Loads each page in a frame of the given width, and sends what it finds. Frames, because windows of Chromium are never
# narrower than 500 pixels.
HARNESS = """<!doctype html><title>harness</title><script>
async function visit(page, width, look) {
  const frame = document.createElement("iframe");
  frame.style = `width: ${width}px; height: 800px; border: 0`;
  document.body.append(frame);
  const loaded = new Promise(done => frame.onload = done);
  frame.src = page;
  await loaded;
  const found = await look(frame.contentWindow, frame.contentDocument);
  frame.remove();
  return found;
}
const wait = milliseconds => new Promise(done => setTimeout(done, milliseconds));
async function layout(inner, page) {
  await wait(50);
  const hosts = inner.performance.getEntriesByType("resource").map(entry => new URL(entry.name).host);
  return {title: page.title, overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth, hosts};
}
async function search(inner, page) {
  for (let tries = 0; tries < 300 && !page.querySelector(".md-search-result__link"); tries++) await wait(100);
  return [...page.querySelectorAll(".md-search-result__link")].map(link => link.href);
}
onload = async () => {
  const result = {search: await visit("index.html?q=QUERY", 1280, search)};
  for (const width of [375, 1280]) {
    result[width] = {};
    for (const page of PAGES) result[width][page] = await visit(page, width, layout);
  }
  await fetch("found", {method: "POST", body: JSON.stringify(result)});
};
</script><body></body>"""


class Found(NamedTuple):
    """What the browser has sent, and its log."""

    address: str
    results: dict[str, Any]
    log: str


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Serve the site to a browser, and let it visit all pages."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    if not (SITE / "index.html").is_file():
        pytest.skip("`make docs` has not built the site")
    pages = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html") if path.name != "404.html")
    harness = HARNESS.replace("PAGES", json.dumps(pages)).replace("QUERY", "relation_auc").encode()
    received: queue.Queue[bytes] = queue.Queue()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/harness":
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(harness)

        def do_POST(self) -> None:
            received.put(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_port}"
    folder = tmp_path_factory.mktemp("chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", "--enable-logging=stderr"]
    command = [str(CHROMIUM), *options, "--remote-debugging-port=0", f"http://{address}/harness"]
    with open(folder / "log", "w") as log, subprocess.Popen(command, stdout=log, stderr=log) as browser:
        try:
            results = json.loads(received.get(timeout=300))
        finally:
            browser.terminate()
            server.shutdown()
    return Found(address, results, (folder / "log").read_text(encoding="utf-8", errors="replace"))


@pytest.mark.slow
@pytest.mark.parametrize("width", ["375", "1280"])
def test_pages_fit_the_screen(found: Found, width: str) -> None:
    pages = found.results[width]
    assert len(pages) >= 25
    assert not {page: result["overflow"] for page, result in pages.items() if result["overflow"] > 0}
    assert all(result["title"] for result in pages.values())


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere_and_log_no_error(found: Found) -> None:
    pages = [*found.results["375"].values(), *found.results["1280"].values()]
    assert {host for result in pages for host in result["hosts"]} == {found.address}
    assert not re.findall(r"CONSOLE.*", found.log)


@pytest.mark.slow
def test_search_finds_a_metric(found: Found) -> None:
    pages = [link.partition("?")[0].removeprefix(f"http://{found.address}/") for link in found.results["search"]]
    assert "concepts/metrics.html" in pages


def test_the_navigation_has_every_page() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    named = re.findall(r"[\w/.-]+\.md", nav)
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(named) == sorted(pages)


def test_tests_are_folded_names_break_and_settings_and_commands_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    sys.modules.pop("hooks", None)
    import hooks  # type: ignore[import-not-found, unused-ignore]

    table = "| case | test, in `x` |\n|---|---|\n| a `b` | `y/test_z.py::test_<w>`, `test_v` |\n| c | |\n\ntest_u"
    first, _, row, empty, _, after = hooks.folded_tests(table).split("\n")
    assert (first, empty, after) == ("| case | test, in `x` |", "| c | |", "test_u")
    assert row == (
        "| a `b` | <details class='test'><summary>test</summary><code>y/test_z.py::test_&lt;w&gt;</code>, "
        "<code>test_v</code></details> |"
    )
    assert hooks.reasons('```bash title="Not run by the tests: needs a file"\n') == '```bash title="Needs a file"\n'
    cell = "<code>a_b</code><td id='a_b'>see t5_text. <code>relation_auc/BertModel&lt;</code></td>"
    assert hooks.breakable(cell) == (
        "<code>a_b</code><td id='a_b'>see t5_<wbr>text. <code>relation_<wbr>auc/<wbr>Bert<wbr>Model&lt;</code></td>"
    )
    assert "### `blend`\n\n*Default:* `'auto'`. Weight of the new row" in hooks.settings("DefinitionEMBConfig")
    assert "## `defemb inspect`" in hooks.commands()
    assert "--projector" in hooks.commands()
