"""The snippets of README and site run, and their tables equal the results."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from defemb_callbacks.metrics.catalog import CATALOG
from launching import CORES

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICKSTART = "get-started/quickstart.md"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
# These run real weights in processes of their own.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": str(CORES)}

# Each page of the guides continues the quickstart. One process: importing torch takes longer than most pages.
RUN_PAGES = """
import json, sys
quickstart, readme, pages = json.loads(sys.argv[1])
after_quickstart = {}
exec(compile(quickstart, "quickstart", "exec"), after_quickstart)
exec(compile(readme, "README.md", "exec"), {})
for name, code in pages.items():
    exec(compile(code, name, "exec"), dict(after_quickstart))
    print("done:", name)
"""
RUN_COMMANDS = """
import json, sys
from defemb_callbacks.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as end:
        if end.code:
            raise
    print("done:", *arguments)
"""
NOT_RUN = "Not run by the tests: "


def blocks(page: str, language: str, run: bool | None = True) -> list[str]:
    """The code blocks of a page: those that run, those that are marked as not run, or, with `None`, both."""
    found = re.findall(rf"^```{language}( [^\n]*)?\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    for title, code in found:
        assert re.fullmatch(rf' title="{NOT_RUN}[^"]+"|', title), f"{title!r} of\n{code}"
    return [code for title, code in found if run is None or run == (not title)]


def commands(page: str, run: bool | None = True) -> list[str]:
    lines = (line for block in blocks(page, "bash", run) for line in block.replace("\\\n", " ").splitlines())
    return [" ".join(line.split()) for line in lines if line.startswith("defemb ")]


@pytest.mark.slow
def test_python_snippets_run_in_order(minilm_dir: Path, wordnet_dir: Path, tmp_path: Path, shared_cache: Path) -> None:
    snippets = {name: "\n".join(blocks(page, "python")) for name, page in PAGES.items() if blocks(page, "python")}
    assert len(snippets) >= 8
    texts = [snippets.pop(QUICKSTART), "\n".join(blocks(README, "python")), snippets]
    code = json.dumps(texts).replace(HUB_ID, str(minilm_dir))
    environment = ENVIRONMENT | {"DEFEMB_CACHE": str(shared_cache)}
    words = [sys.executable, "-c", RUN_PAGES, code]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done: ") == len(snippets)
    assert done.stdout.count("Rebuilt 18,") >= 2  # quickstart and README
    assert (tmp_path / "outputs/quickstart/defemb/metrics.png").is_file()
    assert (tmp_path / "outputs/quickstart/defemb/index.html").is_file()
    assert "definition-emb" in (tmp_path / "outputs/quickstart/final/README.md").read_text(encoding="utf-8")
    assert (tmp_path / "outputs/rebuilt/model.safetensors").is_file()


@pytest.mark.slow
def test_commands_run_in_order(minilm_dir: Path, wordnet_dir: Path, tmp_path: Path, shared_cache: Path) -> None:
    # Pages may show the same command; it runs once.
    lines = list(dict.fromkeys(line for page in [README, *PAGES.values()] for line in commands(page)))
    assert sorted(line.split()[1] for line in lines) == ["apply", "build", "define", "inspect", "inspect"]
    (tmp_path / "terms.tsv").write_text("word\tdefinition\nneoadjuvant\tgiven before an operation\n")
    # `apply` and the second `inspect` need the folders that other commands write.
    lines.sort(key=lambda line: ["build", "apply", "inspect", "define"].index(line.split()[1]))
    arguments = [command.replace(HUB_ID, str(minilm_dir)).split()[1:] for command in lines]
    # In one process: starting one for each command takes longer than most commands.
    environment = ENVIRONMENT | {"DEFEMB_CACHE": str(shared_cache)}
    words = [sys.executable, "-c", RUN_COMMANDS, json.dumps(arguments)]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done: ") == len(lines)
    assert (tmp_path / "outputs/checkpoint/model.safetensors").is_file()
    assert (tmp_path / "outputs/page/index.html").is_file()
    assert "neoadjuvant" in (tmp_path / "outputs/terms/tokenizer.json").read_text(encoding="utf-8")
    assert (tmp_path / "outputs/page/projector/checkpoint/projector_config.pbtxt").is_file()


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if blocks(page, "python", run=False)])
def test_snippets_that_do_not_run_are_valid_python(name: str) -> None:
    for code in blocks(PAGES[name], "python", run=False):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("defemb_callbacks"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), code


def test_options_of_all_commands_exist() -> None:
    from typer.testing import CliRunner

    from defemb_callbacks.cli import app
    from defemb_callbacks.cli.models import Session

    lines = [line for page in [README, *PAGES.values()] for line in commands(page, run=None)]
    assert {line.split()[1] for line in lines} == {"apply", "build", "calibrate", "define", "inspect", "run"}
    for line in lines:
        _, name, *words = line.split()
        if name == "run":  # what follows the script are its own options
            script = next(i for i, word in enumerate(words) if word == "-m" or word.endswith(".py"))
            words = words[: script + 1]
        shown = CliRunner().invoke(app, [name, "--help"], obj=Session(), prog_name="defemb").output
        for word in words:
            assert not word.startswith("-") or re.search(rf"(?<![\w-]){re.escape(word)}\b", shown), line


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150
    [quickstart] = blocks(README, "python")
    assert len([line for line in quickstart.splitlines() if line]) <= 12
    assert re.findall(r"<!-- table (\w+) -->", README) == ["supersense"]


def test_tables_are_those_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    tables = importlib.import_module("tables")
    shown = [name for page in PAGES.values() for name in re.findall(r"<!-- table (\w+) -->", page)]
    # Each once, except those of benchmarks that have not been run.
    measured = [name for name, (file, _) in tables.TABLES.items() if (tables.RESULTS / file).is_file()]
    assert sorted(shown) == sorted(measured)
    for page in [README, *PAGES.values()]:
        assert tables.render(page) == page, "run `python benchmarks/tables.py`"


def test_tables_fit_a_page() -> None:
    for name, page in PAGES.items():
        for line in re.findall(r"^\|.*\|$", page, flags=re.MULTILINE):
            assert len(re.sub(r"`[^`]*`", "", line).strip("|").split("|")) <= 6, f"{name}: {line}"


def test_code_fits_a_page() -> None:
    """Longer lines scroll sideways on the site. Outputs are shown as they are."""
    for name, page in PAGES.items():
        code = "\n".join(blocks(page, "python", run=None) + blocks(page, "bash", run=None))
        assert not [line for line in code.splitlines() if len(line) > 80], name


def test_tables_have_headers() -> None:
    for name, page in PAGES.items():
        for rows in re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE):
            assert re.search(r"\A.*\n\|[ :|-]+\|\n", rows), f"{name}: {rows}"


def test_wide_tables_are_divided_or_transposed_without_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    tables, common = importlib.import_module("tables"), importlib.import_module("tables_common")
    header = ["rows", "a", "b", "c", "d", "e", ""]
    narrow = common.table(header[:6], [["x", "", "2", "3", "4", ""]])
    assert tables.fitted(narrow) == narrow
    rows = [[f"{letter}{number}" for number in range(7)] for letter in "uvwxyz"]
    rows[0][6] = ""
    first, second = tables.fitted(common.table(header, rows)).split("\n\n")
    assert first.splitlines()[0] == "| rows | u0 | v0 | w0 | x0 | y0 |"
    assert first.splitlines()[2] == "| a | u1 | v1 | w1 | x1 | y1 |"
    assert first.splitlines()[-1] == "|  |  | v6 | w6 | x6 | y6 |"
    assert second.splitlines()[-1] == "|  | z6 |"
    repeated = [["one", *row[1:]] for row in rows[:2]] + [["two", *row[1:]] for row in rows[2:]]
    parts = tables.fitted(common.table(header, repeated)).split("\n\n")
    assert parts[::2] == ["**rows: one**", "**rows: two**"]
    assert parts[3].splitlines()[2] == "| w1 | w2 | w3 | w4 | w5 | w6 |"


def test_the_page_of_metrics_is_that_of_the_catalog() -> None:
    page = PAGES["concepts/metrics.md"]
    [table] = re.findall(r"\| key `defemb/…` .*\n\|[-|]+\|\n((?:\|.*\n)+)", page)
    rows = [[cell.strip() for cell in line.strip("|").split(" |")] for line in table.splitlines()]
    assert rows == [
        [f"`{metric.name}`", metric.title, metric.definition, metric.better or ""] for metric in CATALOG.values()
    ]
    in_words = page.partition("## In words\n\n")[2].strip().split("\n\n")
    assert in_words == [part for m in CATALOG.values() for part in (f"### {m.title}", f"`{m.name}`: {m.meaning}")]


def texts_in(path: Path) -> Iterator[str]:
    """The string literals of a module; the values in f-strings are `…`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)


def test_the_messages_in_troubleshooting_are_those_of_the_code() -> None:
    messages = re.findall(r"^### `(.*)`$", PAGES["troubleshooting.md"], flags=re.MULTILINE)
    assert len(messages) >= 20
    texts = [text for path in (ROOT / "src").rglob("*.py") for text in texts_in(path)]
    known = [re.sub(r"%[ds]", "…", text) for text in texts]
    assert not [message for message in messages if not any(message in text for text in known)]


def address() -> str:
    """The address of the repository, as the metadata give it."""
    return re.findall(r"^url = (\S+)$", (ROOT / "setup.cfg").read_text(encoding="utf-8"), flags=re.MULTILINE)[0]


def test_links_are_valid() -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", README)
    owner, name = address().split("/")[-2:]
    site = f"https://{owner}.github.io/{name}/"
    raw = f"https://raw.githubusercontent.com/{owner}/{name}/main/"
    assert [link for link in links if link.startswith(site)]
    for link in links:
        assert link.startswith("https://"), f"{link}: a package index cannot resolve relative links"
        target = link.partition("#")[0]
        if target.startswith(site) and target != site:
            assert target.removeprefix(site).replace(".html", ".md") in PAGES, link
        elif target.startswith(raw):
            assert (ROOT / target.removeprefix(raw)).is_file(), link
        elif target.startswith(address()) and "/actions/" not in target:
            place = re.sub(r"^/(blob|tree)/main/", "", target.removeprefix(address()))
            assert (ROOT / place).exists(), link
    # Links between pages, for readers of the files; the site's own check knows the anchors, too.
    for page, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            assert target.startswith("http") or (DOCS / page).parent.joinpath(target).exists(), f"{page}: {target}"


def test_links_of_the_examples_are_valid() -> None:
    for path in [*(ROOT / "examples").glob("*.md"), *(ROOT / "examples").glob("*.ipynb")]:
        targets = re.findall(r"\]\((\.\./[^)#\s]+)(?:#([\w-]+))?\)", path.read_text(encoding="utf-8"))
        assert targets
        for target, anchor in targets:
            text = (path.parent / target).read_text(encoding="utf-8")
            headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
            assert not anchor or anchor in anchors, f"{path.name}: {target}#{anchor}"


def test_the_address_of_the_repository_is_the_same_everywhere() -> None:
    files = [ROOT / "README.md", ROOT / "CITATION.cff", ROOT / "mkdocs.yml", ROOT / "setup.cfg", *DOCS.rglob("*.md")]
    owner, name = address().split("/")[-2:]
    for path in files:
        text = path.read_text(encoding="utf-8")
        named = set(re.findall(r"(?:github\.com|githubusercontent\.com)/([\w-]+/defemb_callbacks)", text))
        named |= {f"{a}/{b}" for a, b in re.findall(r"https://([\w-]+)\.github\.io/(\w+)/", text)}
        assert named <= {f"{owner}/{name}"}, path


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    benchmarks = re.findall(r"^BENCHMARKS := (.*)$", makefile, flags=re.MULTILINE)[0].split()
    for page in [README, *PAGES.values()]:
        for target in set(re.findall(r"`make ([\w-]+)|^make ([\w-]+)", page, flags=re.MULTILINE)):
            name = "".join(target)
            known = name.removeprefix("bench-") in benchmarks
            assert known or re.search(rf"^{name}:", makefile, flags=re.MULTILINE), name
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_tests_that_the_table_of_compatibility_names_exist() -> None:
    table = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    tests = ROOT / "tests"
    files = {str(path.relative_to(tests)): path.read_text(encoding="utf-8") for path in tests.rglob("test_*.py")}
    assert set(re.findall(r"[\w/]*test_\w+\.py", table)) <= set(files)
    named = set(re.findall(r"\b(test_\w+?)_?(?:…|`|\[)", table))
    assert len(named) > 30
    missing = [name for name in named if not any(f"def {name}" in content for content in files.values())]
    assert not missing
