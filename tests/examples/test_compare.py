"""compare.py: each run is started once, intervals are correct, and the table shows the measured scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import compare
import numpy as np
import pytest
import run_glue
from intervals import paired_interval, seed_interval
from scipy.stats import norm, t, ttest_1samp

from glue_runs import options

VARIANTS = ("baseline", "better")

# Writes the same files as the real scripts: accuracy and F1 of ten examples, of which the first four have a rare token.
SCRIPT = """
import json, random, sys
from pathlib import Path
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder, seed = Path(given["--output_dir"]), int(given["--seed"])
with open(given["--count"], "a") as file:
    file.write(f"{given['--gain']} {seed}\\n")
if given["--gain"] == "broken":
    sys.exit("the script says why")
draw = random.Random(seed)
scores = [float(draw.random() < 0.4) for _ in range(10)]
if float(given["--gain"]):
    scores[:2] = [1.0, 1.0]
rows = [{"rare": number < 4, "accuracy": score, "label": 1} for number, score in enumerate(scores)]
(folder / "eval_examples.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
metrics = {"eval_loss": 0.1, "eval_samples_rare": 4, "eval_samples_other": 6}
for group, part in (("", scores), ("_rare", scores[:4]), ("_other", scores[4:])):
    metrics[f"eval_accuracy{group}"] = sum(part) / len(part)
    metrics[f"eval_f1{group}"] = sum(part) / len(part) / 2
if given.get("--mm"):
    rows = [{"rare": number < 2, "accuracy": 1.0} for number in range(5)]
    (folder / "eval_mm_examples.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
    metrics |= {f"eval_mm_accuracy{group}": 1.0 for group in ("", "_rare", "_other")} | {"eval_mm_samples_rare": 2}
if given.get("--other"):
    rows = [row | {"rare": row["rare"] != (seed == 0)} for row in rows]
    (folder / "eval_examples.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
(folder / "all_results.json").write_text(json.dumps(metrics))
"""


@pytest.fixture
def command(tmp_path: Path) -> Any:
    (tmp_path / "script.py").write_text(SCRIPT)

    def given(*more: str, variants: tuple[str, ...] = ("baseline=--gain 0", "better=--gain 1")) -> list[str]:
        own = [str(tmp_path / "script.py"), "--output_dir", str(tmp_path / "out"), "--variants", *variants, *more]
        return [*own, "--", "--count", str(tmp_path / "count")]

    return given


def runs(tmp_path: Path) -> list[str]:
    return (tmp_path / "count").read_text().splitlines()


def test_the_table_shows_the_measured_scores(command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = compare.main(command("--seeds", "4"))
    lines = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    of = {v: [line["metrics"]["eval_accuracy_rare"] for line in lines if line["variant"] == v] for v in VARIANTS}
    mean = {variant: np.mean(values) for variant, values in of.items()}
    rare = results["accuracy"]["rare"]
    assert rare["examples"] == 4
    assert rare["better"]["mean"] == pytest.approx(mean["better"])
    assert rare["better"]["difference"] == pytest.approx(mean["better"] - mean["baseline"])
    low, high = rare["better"]["interval"]
    assert low <= rare["better"]["difference"] <= high
    assert results["accuracy"]["other"]["better"]["interval"] == (0, 0)
    assert results["accuracy"]["all"]["baseline"]["difference"] == 0
    # F1 is not a mean over examples, so the interval is over seeds.
    expected = seed_interval(np.array(results["f1"]["all"]["better"]["of_seeds"]))
    assert results["f1"]["all"]["better"]["interval"] == expected
    table = (tmp_path / "out" / "results.md").read_text()
    assert table in capsys.readouterr().out
    assert "| accuracy | all (10) | difference [95 %] | with a rare rebuilt token (4) |" in table
    assert f"| better | {results['accuracy']['all']['better']['mean']:.4f} | " in table
    assert (tmp_path / "out" / "differences.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "out" / "results.json").read_text())["settings"]["seeds"] == 4


def test_no_run_is_repeated(command: Any, tmp_path: Path) -> None:
    compare.main(command("--seeds", "2"))
    assert runs(tmp_path) == ["0 0", "1 0", "0 1", "1 1"]
    compare.main(command("--seeds", "3"))
    assert runs(tmp_path)[4:] == ["0 2", "1 2"]
    more = ("baseline=--gain 0", "better=--gain 1", "third=--gain 2")
    compare.main(command("--seeds", "3", variants=more))
    assert runs(tmp_path)[6:] == ["2 0", "2 1", "2 2"]


def test_an_incomplete_line_is_run_again(command: Any, tmp_path: Path) -> None:
    first = compare.main(command("--seeds", "2"))
    path = tmp_path / "out" / "runs.jsonl"
    path.write_text(path.read_text()[:-30])
    assert compare.main(command("--seeds", "2")) == first
    assert runs(tmp_path)[4:] == ["1 1"]
    assert len(path.read_text().splitlines()) == 4


def test_a_failed_run_is_shown_and_finished_runs_are_kept(command: Any, tmp_path: Path) -> None:
    variants = ("baseline=--gain 0", "bad=--gain broken")
    with pytest.raises(RuntimeError, match=r"--gain broken --seed 0 (?s:.*)failed \(1\)(?s:.*)the script says why"):
        compare.main(command("--seeds", "1", variants=variants))
    compare.main(command("--seeds", "1"))
    assert runs(tmp_path) == ["0 0", "broken 0", "1 0"]


def test_runs_with_other_options_are_not_mixed(command: Any) -> None:
    compare.main(command("--seeds", "1"))
    with pytest.raises(ValueError, match=r"has runs of 'better' with different options \(.*--gain 1\). Choose another"):
        compare.main(command("--seeds", "1", variants=("baseline=--gain 0", "better=--gain 3")))


def test_runs_on_other_examples_are_not_compared(command: Any, tmp_path: Path) -> None:
    compare.main(command("--seeds", "1"))
    path = tmp_path / "out" / "runs.jsonl"
    first, second = map(json.loads, path.read_text().splitlines())
    first["examples"]["eval"]["rare"].pop()
    path.write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n")
    with pytest.raises(ValueError, match="evaluated on different numbers of examples"):
        compare.main(command("--seeds", "2"))
    assert runs(tmp_path)[2:] == ["0 1"]  # the error is raised after one run, not after all


def test_two_validation_sets_are_reported_separately(command: Any) -> None:
    results = compare.main([*command("--seeds", "2"), "--mm", "yes"])
    assert set(results) == {"accuracy", "f1", "accuracy (eval_mm)"}
    assert [rows["examples"] for rows in results["accuracy (eval_mm)"].values()] == [5, 2, 3]
    assert [rows["examples"] for rows in results["accuracy"].values()] == [10, 4, 6]
    assert results["accuracy (eval_mm)"]["rare"]["better"]["interval"] == (0, 0)


def test_groups_are_those_of_the_baseline(command: Any) -> None:
    plain = compare.main(command("--seeds", "2"))
    more = ("baseline=--gain 0", "better=--gain 1", "other=--gain 1 --other yes")
    results = compare.main(command("--seeds", "2", variants=more))
    assert results["accuracy"]["rare"]["other"] == plain["accuracy"]["rare"]["better"]
    assert set(results["f1"]) == {"all"}  # it cannot be computed for other groups


@pytest.mark.parametrize(
    ("variants", "match"),
    [
        (("baseline", "blnd"), "unknown variant 'blnd'. Choose one of baseline, blend"),
        (("blend",), "must include 'base"),
    ],
)
def test_wrong_variants(command: Any, variants: tuple[str, ...], match: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        compare.main(command(variants=variants))
    assert match in capsys.readouterr().err


def test_one_seed_resamples_examples_only(command: Any) -> None:
    results = compare.main(command("--seeds", "1"))
    assert "interval" in results["accuracy"]["rare"]["better"]
    assert "interval" not in results["f1"]["rare"]["better"]


def test_interval_over_seeds_is_that_of_a_t_test() -> None:
    differences = np.array([0.01, 0.03, -0.02, 0.04, 0.0])
    expected = ttest_1samp(differences, 0).confidence_interval(0.9)
    assert seed_interval(differences, 0.9) == pytest.approx((expected.low, expected.high))


def test_interval_of_many_examples_is_that_of_the_normal_distribution() -> None:
    draw = np.random.default_rng(1)
    examples = draw.normal(0.1, 1, 500)
    half = norm.ppf(0.975) * examples.std() / 500**0.5
    expected = (examples.mean() - half, examples.mean() + half)
    assert paired_interval(examples[None]) == pytest.approx(expected, abs=0.05 * half)
    # Equal seeds add nothing; different seeds widen the interval.
    assert paired_interval(np.repeat(examples[None], 5, axis=0)) == pytest.approx(expected, abs=0.05 * half)
    shifts = np.array([-0.2, -0.1, 0, 0.1, 0.2])[:, None]
    low, high = paired_interval(examples[None] + shifts)
    of_seeds, of_examples = t.ppf(0.975, 4) * (shifts.var(ddof=1) / 5) ** 0.5, half
    assert high - low == pytest.approx(2 * np.hypot(of_seeds, of_examples), rel=0.05)


def test_interval_covers_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intervals.DRAWS", 1000)
    draw = np.random.default_rng(2)
    for seeds, noise in ((2, 0.0), (5, 0.0), (5, 1.0)):
        covered = 0
        for number in range(40):
            of_seeds, examples = draw.normal(0, 0.1, (seeds, 1)), draw.normal(0, noise, (1, 100))
            differences = 0.1 + of_seeds + examples + draw.normal(0, noise, (seeds, 100))
            low, high = paired_interval(differences, seed=number)
            covered += low <= 0.1 <= high
        assert covered >= 34, (seeds, noise)  # 38 is 95 %


@pytest.mark.slow
def test_with_the_real_script(place: Path, tmp_path: Path) -> None:
    given = options(place, tmp_path)
    output = given.index("--output_dir")
    own = [
        run_glue.__file__,
        "--output_dir",
        str(tmp_path / "out"),
        "--seeds",
        "1",
        "--variants",
        "baseline",
        "replace",
    ]
    results = compare.main([*own, "--", *given[:output], *given[output + 2 :]])
    assert set(results) == {"accuracy"}
    assert set(results["accuracy"]["all"]) == {"examples", "baseline", "replace"}


def test_no_seeds_and_nothing_evaluated(command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.main(command("--seeds", "0"))
    assert "--seeds must be at least 1, got 0" in capsys.readouterr().err
    (tmp_path / "script.py").write_text("import sys; open(sys.argv[-1] + '/all_results.json', 'w').write('{}')")
    with pytest.raises(RuntimeError, match=r"wrote no (?s:.*)Pass --do_eval"):
        compare.main(command("--seeds", "1"))
