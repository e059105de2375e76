"""run_supersense.py: a fair data split, and a run."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from defemb_callbacks import Definition, Lexicon
from launching import CORES
from tiny import wordpiece_tokenizer

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "run_supersense.py"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_supersense", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_supersense"] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module


def test_only_words_whose_first_sense_is_a_noun(demo: ModuleType) -> None:
    lexicon = Lexicon.from_definitions(
        [
            Definition("dog", "an animal", pos="noun", category="noun.animal", tag_count=9),
            Definition("dog", "to follow", pos="verb", category="verb.motion", tag_count=1),
            Definition("run", "to go quickly", pos="verb", category="verb.motion", tag_count=9),
            Definition("run", "a race", pos="noun", category="noun.event", tag_count=1),
            Definition("unheard", "a word that is no token", pos="noun", category="noun.act"),
        ],
        name="tiny",
    )
    rows = demo.noun_categories(wordpiece_tokenizer(), lexicon)
    assert {row["text"]: row["category"] for row in rows} == {"dog": "noun.animal"}


def test_training_has_no_test_word_and_no_rare_word(demo: ModuleType) -> None:
    rows = [{"text": f"w{i}", "group": group} for i, group in enumerate(["frequent", "medium", "rare"] * 100)]
    train, test = demo.split(rows)
    assert len(train) + len(test) == len(rows)
    assert not {row["text"] for row in train} & {row["text"] for row in test}
    assert {row["group"] for row in train} == {"frequent", "medium"}
    assert sum(row["group"] == "rare" for row in test) == 100
    assert 0 < sum(row["group"] == "frequent" for row in test) < 30


def test_table_shows_paired_differences(demo: ModuleType) -> None:
    groups = ("frequent", "medium", "rare")
    results = {
        "baseline": [dict.fromkeys(groups, 0.5), dict.fromkeys(groups, 0.6)],
        "definitions": [dict.fromkeys(groups, 0.7), dict.fromkeys(groups, 0.9)],
    }
    table = demo.markdown(results, [{"group": "rare"}, {"group": "rare"}])
    assert "| rare (2) | 0.550 ± 0.071 | 0.800 ± 0.141 | +0.250 |" in table


@pytest.mark.slow
def test_demo_runs_without_network(minilm_dir: Path, wordnet_dir: Path, tmp_path: Path, shared_cache: Path) -> None:
    environment = os.environ | {"DEFEMB_CACHE": str(shared_cache), "OMP_NUM_THREADS": str(CORES)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--seeds", "1", "--epochs", "0.2", "--output_dir", str(tmp_path / "demo")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "26 categories" in done.stdout
    assert done.stderr == ""  # no reports, no warnings, and no bars without a terminal
    assert "{'" not in done.stdout
    assert len(done.stdout.splitlines()) < 40
    assert len(re.findall(r"^ *\d+\.\d s  \w", done.stdout, flags=re.MULTILINE)) == 4  # phases
    assert done.stdout.count("Rebuilt 18,") == 1
    assert len(re.findall(r"^(?:frequent|medium|rare) \([\d,]+\) +0\.\d", done.stdout, flags=re.MULTILINE)) == 3
    named = [Path(name) for name in re.findall(r": (\S+\.(?:png|html))$", done.stdout, flags=re.MULTILINE)]
    assert named == [tmp_path / "demo" / "accuracy.png", tmp_path / "demo" / "definitions-0" / "defemb" / "index.html"]
    assert all(path.is_file() for path in named)
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert set(results["accuracy"]["definitions"][0]) == {"frequent", "medium", "rare"}
    assert (tmp_path / "demo" / "accuracy.png").stat().st_size > 10_000
    assert (tmp_path / "demo" / "definitions-0" / "defemb" / "projection.png").is_file()
