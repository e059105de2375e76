"""The README's snippets run, and its tables equal the results."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from defemb_callbacks.metrics.catalog import CATALOG
from launching import CORES

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
# These run real weights in processes of their own.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": str(CORES)}

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


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
def test_python_snippets_run_in_order(minilm_dir: Path, wordnet_dir: Path, tmp_path: Path, shared_cache: Path) -> None:
    snippets = blocks("python")
    assert len(snippets) >= 3
    code = "\n".join(snippets).replace(HUB_ID, str(minilm_dir))
    environment = ENVIRONMENT | {"DEFEMB_CACHE": str(shared_cache)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Rebuilt 18," in done.stdout
    assert (tmp_path / "outputs/quickstart/defemb/metrics.png").is_file()
    assert (tmp_path / "outputs/quickstart/defemb/index.html").is_file()
    assert "definition-emb" in (tmp_path / "outputs/quickstart/final/README.md").read_text(encoding="utf-8")
    assert (tmp_path / "outputs/rebuilt/model.safetensors").is_file()


@pytest.mark.slow
def test_commands_run_in_order(minilm_dir: Path, wordnet_dir: Path, tmp_path: Path, shared_cache: Path) -> None:
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("defemb ")]
    assert [command.split()[1] for command in commands] == ["inspect", "build", "apply", "inspect", "define"]
    (tmp_path / "terms.tsv").write_text("word\tdefinition\nneoadjuvant\tgiven before an operation\n")
    arguments = [command.replace(HUB_ID, str(minilm_dir)).split()[1:] for command in commands]
    # In one process: starting one for each command takes longer than most commands.
    environment = ENVIRONMENT | {"DEFEMB_CACHE": str(shared_cache)}
    words = [sys.executable, "-c", RUN_COMMANDS, json.dumps(arguments)]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done: ") == len(commands)
    assert (tmp_path / "outputs/checkpoint/model.safetensors").is_file()
    assert (tmp_path / "outputs/page/index.html").is_file()
    assert "neoadjuvant" in (tmp_path / "outputs/terms/tokenizer.json").read_text(encoding="utf-8")
    assert (tmp_path / "outputs/page/projector/checkpoint/projector_config.pbtxt").is_file()


def test_tables_are_those_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    tables = importlib.import_module("tables")
    assert len(re.findall(r"<!-- table \w+ -->", README)) == len(tables.TABLES)
    assert tables.render(README) == README, "run `python benchmarks/tables.py`"


def test_the_table_of_metrics_is_that_of_the_catalog() -> None:
    [table] = re.findall(r"\| key `defemb/…` .*\n\|[-|]+\|\n((?:\|.*\n)+)", README)
    rows = [[cell.strip() for cell in line.strip("|").split(" |")] for line in table.splitlines()]
    assert rows == [
        [f"`{metric.name}`", metric.title, metric.definition, metric.better or ""] for metric in CATALOG.values()
    ]


def test_links_are_valid() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    local = [target for target in targets if not target.startswith("http")]
    assert local
    assert not [target for target in local if not (ROOT / target).exists()]


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
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
