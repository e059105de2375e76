"""The built site in a browser as wide as a phone: no horizontal scrolling, no error, nothing from another host.

`make docs` builds the site, and the tests of the browser are skipped without it or without Chromium.
"""

from __future__ import annotations

import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "site"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

# Loads each page in a frame of the given width, and writes what it finds into the document. Frames, because windows of
# Chromium are never narrower than 500 pixels.
HARNESS = """<!doctype html><title>harness</title><pre id="found"></pre><script>
const pages = PAGES, found = {};
async function visit(page) {
  const frame = document.createElement("iframe");
  frame.style = "width: WIDTHpx; height: 800px; border: 0";
  document.body.append(frame);
  const loaded = new Promise(done => frame.onload = done);
  frame.src = page;
  await loaded;
  await new Promise(done => setTimeout(done, 50));
  const inner = frame.contentWindow, root = frame.contentDocument.documentElement;
  found[page] = {
    title: frame.contentDocument.title,
    overflow: root.scrollWidth - root.clientWidth,
    hosts: inner.performance.getEntriesByType("resource").map(entry => new URL(entry.name).host)
  };
  frame.remove();
}
(async () => {
  for (const page of pages) await visit(page);
  document.getElementById("found").textContent = JSON.stringify(found);
  document.title = "done";
})();
</script>"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Serve the site, with the harness."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    if not (SITE / "index.html").is_file():
        pytest.skip("`make docs` has not built the site")
    pages = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html") if path.name != "404.html")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            width = re.fullmatch(r"/harness-(\d+)", self.path)
            if width is None:
                return super().do_GET()
            body = HARNESS.replace("PAGES", json.dumps(pages)).replace("WIDTH", width[1]).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(SITE)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("width", [375, 1280])
def test_pages_fit_the_screen_without_errors(address: str, width: int, tmp_path: Path) -> None:
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--enable-logging=stderr"]
    options += ["--virtual-time-budget=120000", "--dump-dom", f"http://{address}/harness-{width}"]
    done = subprocess.run([str(CHROMIUM), *options], capture_output=True, text=True, timeout=600, check=True)
    [found] = re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    results = json.loads(unescape(found))
    assert len(results) >= 25
    assert not {page: result["overflow"] for page, result in results.items() if result["overflow"] > 0}
    assert all(result["title"] for result in results.values())
    assert {host for result in results.values() for host in result["hosts"]} <= {address}
    assert not re.findall(r"CONSOLE.*", done.stderr)


def test_the_navigation_has_every_page() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    named = re.findall(r"[\w/.-]+\.md", nav)
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(named) == sorted(pages)


def test_tests_are_folded_and_settings_and_commands_listed(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert "### `blend`\n\n*Default:* `'auto'`. Weight of the new row" in hooks.settings("DefinitionEMBConfig")
    assert "## `defemb inspect`" in hooks.commands()
    assert "--projector" in hooks.commands()
