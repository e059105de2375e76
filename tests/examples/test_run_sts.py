"""run_sts.py: file formats, correct correlations, and a short run."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import tiny

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "run_sts.py"
PAIRS = [("A plane, taking off.", "A plane takes off.", 5.0), ("A man", "A dog", 0.5), ("Two dogs", "A dog", 2.75)]


@pytest.fixture(scope="module")
def sts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_sts", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_sts"] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module


LAYOUTS = {
    "headless.csv": '"A plane, taking off.",A plane takes off.,5\nA man,A dog,0.5\n\nTwo dogs,A dog,2.75\n',
    "named.csv": 'Score,sentence2,sentence1\n5.0,A plane takes off.,"A plane, taking off."\n'
    ".5,A dog,A man\n2.75,A dog,Two dogs\n",
    "sick.txt": "pair_ID\tsentence_A\tsentence_B\trelatedness_score\n"
    "1\tA plane, taking off.\tA plane takes off.\t5\n2\tA man\tA dog\t0.5\n3\tTwo dogs\tA dog\t2.75\n",
    # The published format of STS-B.
    "sts-dev.csv": "main-captions\tMSRvid\t2012test\t0000\t5.000\tA plane, taking off.\tA plane takes off.\n"
    "main-captions\tMSRvid\t2012test\t0002\t0.500\tA man\tA dog\n"
    "main-news\theadlines\t2013\t0006\t2.750\tTwo dogs\tA dog\n",
    "rows.jsonl": "\n".join(json.dumps({"sentence1": a, "sentence2": b, "similarity_score": c}) for a, b, c in PAIRS),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_files(sts: ModuleType, tmp_path: Path, layout: str) -> None:
    (tmp_path / layout).write_text(LAYOUTS[layout], encoding="utf-8")
    assert [tuple(pair[:3]) for pair in sts.read_pairs(str(tmp_path / layout))] == PAIRS


def test_quotes_in_tab_separated_files_are_text(sts: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "set.tsv").write_text('"Yes", he said.\t5" pipe\t1\nA\tB\t2\nC\tD\t3\n')
    assert sts.read_pairs(str(tmp_path / "set.tsv"))[0].left == '"Yes", he said.'
    assert sts.read_pairs(str(tmp_path / "set.tsv"))[0].right == '5" pipe'


def test_subsets_of_a_shared_task(sts: ModuleType, tmp_path: Path) -> None:
    for subset, lines, ratings in (("news", "a\tb\tsource\nc\td\ne\tf\n", "1\n\n2\n"), ("images", "g\th\n", "3\n")):
        (tmp_path / f"STS.input.{subset}.txt").write_text(lines)
        (tmp_path / f"STS.gs.{subset}.txt").write_text(ratings)
    # The pair without a rating is omitted.
    expected = [("g", "h", 3.0, "images"), ("a", "b", 1.0, "news"), ("e", "f", 2.0, "news")]
    assert list(map(tuple, sts.read_pairs(str(tmp_path)))) == expected


def test_data_set_on_the_hub(sts: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, split: str) -> list[dict[str, object]]:
        asked.append((name, split))
        return [{"sentence1": left, "sentence2": right, "score": score} for left, right, score in PAIRS]

    monkeypatch.setattr(sts, "load_dataset", load_dataset)
    assert [tuple(pair[:3]) for pair in sts.read_pairs("mteb/stsbenchmark-sts")] == PAIRS
    sts.read_pairs("mteb/stsbenchmark-sts:validation")
    assert asked == [("mteb/stsbenchmark-sts", "test"), ("mteb/stsbenchmark-sts", "validation")]


def test_invalid_files_are_errors(sts: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"The file '.*missing\.csv' does not exist"):
        sts.read_pairs(str(tmp_path / "missing.csv"))
    (tmp_path / "short.csv").write_text("A,B,1\n")
    with pytest.raises(ValueError, match=r"has 1 rated pairs\. A correlation requires at least 3"):
        sts.read_pairs(str(tmp_path / "short.csv"))
    (tmp_path / "odd.csv").write_text("sentence1,other,score\na,b,1\n")
    with pytest.raises(ValueError, match="The columns sentence1, other, score do not include"):
        sts.read_pairs(str(tmp_path / "odd.csv"))


def test_all_and_wmean_equal_their_definitions(sts: ModuleType) -> None:
    generator = np.random.default_rng(0)
    subsets = ["news"] * 10 + ["images"] * 40
    pairs = [
        sts.Pair("", "", float(score), subset) for score, subset in zip(generator.random(50), subsets, strict=True)
    ]
    left, right = (torch.tensor(generator.normal(size=(50, 4))) for _ in range(2))
    cosines = torch.cosine_similarity(left, right).numpy()
    scores = np.array([pair.score for pair in pairs])
    found = sts.correlations(pairs, left, right)
    assert found["all"] == pytest.approx(spearmanr(cosines, scores).statistic)
    first, second = spearmanr(cosines[:10], scores[:10]).statistic, spearmanr(cosines[10:], scores[10:]).statistic
    assert found["wmean"] == pytest.approx(0.2 * first + 0.8 * second)
    assert abs(found["all"] - found["wmean"]) > 1e-3


def test_table_names_both_scores(sts: ModuleType) -> None:
    results = {"last": {"raw": {"STS12": {"all": 0.5, "wmean": 0.25}}, "flow": {"STS12": {"all": 0.6, "wmean": 0.35}}}}
    assert sts.markdown(results).splitlines() == [
        "| pooling | calibration | STS12, all | STS12, wmean |",
        "| --- | --- | --- | --- |",
        "| last | raw | 0.500 | 0.250 |",
        "| last | flow | 0.600 | 0.350 |",
    ]


def test_it_runs(
    sts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny.wordpiece_tokenizer()
    tiny.tiny_bert(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    words = [word for word in tiny.WORDS if "'" not in word]
    for name in ("one", "two", "more"):
        lines = [f"{words[i]} {words[-i]} {name},{words[i + 1]} {words[3 * i]},{i % 6}" for i in range(90)]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    arguments = ["--model", "model", "--data", "one.csv", "two.csv", "--fit", "more.csv", "--pooling", "last", "static"]
    arguments += ["--whitening", "0", "8", "64", "--top", "2", "--output_dir", "out"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run_sts.py", *arguments])
    sts.main()
    results = json.loads((tmp_path / "out" / "results.json").read_text())["spearman"]
    # Width 32 cannot be whitened to 64 directions.
    rows = ["raw", "standardised", "top 2 removed", "whitening all", "whitening 8", "flow (principal)"]
    assert {pooling: list(found) for pooling, found in results.items()} == {"last": rows, "static": rows}
    assert set(results["last"]["raw"]) == {"one", "two"}
    assert results["last"]["raw"]["one"] != results["last"]["raw"]["two"]
    assert len({json.dumps(found) for found in results["last"].values()}) == len(rows)
    assert (tmp_path / "out" / "results.md").read_text() == sts.markdown(results) + "\n"
    assert (tmp_path / "out" / "sts.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert sts.markdown(results) in printed
    assert "one, static: The sentence embeddings have uniformity" in printed


@pytest.mark.slow
def test_whitening_reaches_the_expected_scores(
    sts: ModuleType,
    minilm_dir: Path,
    data_dir: Path,
    tmp_path: Path,
    several_threads: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["--model", str(minilm_dir), "--data", str(data_dir / "stsb" / "validation.csv")]
    arguments += ["--fit", str(data_dir / "stsb" / "train.csv"), "--pooling", "static", "layer:3", "layer:5", "last"]
    arguments += ["--shrinkage", "0", "--flow", "none", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["run_sts.py", *arguments])
    sts.main()
    found = json.loads((tmp_path / "results.json").read_text())["spearman"]
    expected = {
        "static": {"raw": 0.629, "whitening all": 0.789, "whitening 256": 0.791, "whitening 128": 0.785},
        "layer:3": {"raw": 0.630, "whitening all": 0.770, "whitening 256": 0.773, "whitening 128": 0.783},
        "layer:5": {"raw": 0.763, "whitening all": 0.810, "whitening 256": 0.813, "whitening 128": 0.816},
        "last": {"raw": 0.867, "whitening all": 0.841, "whitening 256": 0.844, "whitening 128": 0.846},
    }
    for pooling, rows in expected.items():
        for calibration, score in rows.items():
            assert found[pooling][calibration]["validation"]["all"] == pytest.approx(score, abs=0.005)
