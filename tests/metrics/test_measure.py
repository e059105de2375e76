"""measure_table: every metric of every group, each equal to the metric of these rows alone, never NaN."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from defemb_callbacks.metrics import (
    TableMeasure,
    average_cosine,
    drift,
    effective_rank,
    isoscore,
    isotropy,
    mean_norm,
    measure_table,
    pairs_by_group,
    relation_auc,
    spectra_by_group,
)
from defemb_callbacks.metrics.drift import equal_tables
from defemb_callbacks.metrics.neighbours import nearest_rows, shared
from defemb_callbacks.metrics.spectrum import Spectrum

N, D = 500, 12


@pytest.fixture
def table() -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 1.5, D) + 0.2


@pytest.fixture
def reference(table: Tensor) -> Tensor:
    return table + 0.4 * torch.randn(N, D, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def groups() -> dict[str, Tensor]:
    """Rows 0-9 are special tokens, in no group; 10-19 are in "all" only."""
    return {
        "all": torch.arange(10, N),
        "frequent": torch.arange(20, 160),
        "medium": torch.arange(160, 400),
        "rare": torch.arange(400, N),
    }


@pytest.fixture
def pairs() -> Tensor:
    pairs = torch.randint(20, N, (800, 2), generator=torch.Generator().manual_seed(2))
    return pairs[pairs[:, 0] != pairs[:, 1]]


def test_every_metric_of_every_group(
    table: Tensor, reference: Tensor, groups: dict[str, Tensor], pairs: Tensor
) -> None:
    figures = measure_table(table, groups, pairs=pairs, reference=reference, neighbour_sample=None)
    related = pairs_by_group(pairs, {name: groups[name] for name in ("frequent", "medium", "rare")})
    everything = groups["all"]
    shares = torch.zeros(N, dtype=torch.float64)
    shares[10:] = shared(*(nearest_rows(rows, everything, everything, 10) for rows in (table, reference)))
    expected: dict[str, float] = {}
    for name, ids in groups.items():
        expected |= {
            f"defemb/isotropy/{name}": isotropy(table[ids]),
            f"defemb/average_cosine/{name}": average_cosine(table[ids]),
            f"defemb/effective_rank/{name}": effective_rank(table[ids]),
            f"defemb/isoscore/{name}": isoscore(table[ids]),
            f"defemb/norm/{name}": mean_norm(table[ids]),
            f"defemb/relation_auc/{name}": relation_auc(table, related[name]),
            f"defemb/drift/{name}": drift(table[ids], reference[ids]),
            f"defemb/neighbour_overlap/{name}": float(shares[ids].mean()),
        }
    assert figures == pytest.approx(expected, rel=1e-9)


class TestMeasuredAgainAndAgain:
    def test_equals_the_one_off_function(
        self, table: Tensor, reference: Tensor, groups: dict[str, Tensor], pairs: Tensor
    ) -> None:
        measure = TableMeasure(groups, pairs=pairs, reference=reference, seed=3)
        for other in (table, 2 * table, table.roll(1, dims=0), table.bfloat16(), table):
            assert measure.measure(other) == measure_table(other, groups, pairs=pairs, reference=reference, seed=3)

    def test_neither_the_table_nor_the_groups_are_changed(
        self, table: Tensor, reference: Tensor, groups: dict[str, Tensor], pairs: Tensor
    ) -> None:
        before = [tensor.clone() for tensor in (table, reference, pairs, *groups.values())]
        for dtype in (torch.float32, torch.float64):
            given = table.to(dtype)
            copy = given.clone()
            TableMeasure(groups, pairs=pairs, reference=reference.to(dtype)).measure(given)
            assert torch.equal(given, copy)
        assert all(torch.equal(*both) for both in zip(before, (table, reference, pairs, *groups.values()), strict=True))

    def test_spectra_known_already(self, table: Tensor, groups: dict[str, Tensor]) -> None:
        measure = TableMeasure(groups)
        assert measure.measure(table, spectra_by_group(table, groups)) == measure.measure(table)

    def test_spectra_are_used(self, table: Tensor, groups: dict[str, Tensor]) -> None:
        spectra = spectra_by_group(table, groups)
        even = {name: Spectrum(torch.ones_like(s.eigenvalues), s.eigenvectors) for name, s in spectra.items()}
        assert TableMeasure(groups).measure(table, even)["defemb/effective_rank/rare"] == pytest.approx(D)

    def test_neighbours_of_a_sample(self, table: Tensor, reference: Tensor, groups: dict[str, Tensor]) -> None:
        """Of "all", the mean of its groups by size; and within the stated error of what every row says."""
        exact = measure_table(table, groups, reference=reference, neighbour_sample=None)
        figures = measure_table(table, groups, reference=reference, neighbour_sample=60)
        parts = {"frequent": 140, "medium": 240, "rare": 100}
        keys = [f"defemb/neighbour_overlap/{name}" for name in ("all", *parts)]
        assert all(figures[key] == pytest.approx(exact[key], abs=3 * 0.5 / 60**0.5) for key in keys)
        assert figures != exact
        weighted = sum(size * figures[f"defemb/neighbour_overlap/{name}"] for name, size in parts.items())
        rest = (490 * figures["defemb/neighbour_overlap/all"] - weighted) / 10  # rows 10 to 19, in no other group
        assert 0 <= rest <= 1
        assert rest == pytest.approx(round(100 * rest) / 100), "a mean over ten rows of tenths"


class TestSample:
    def test_is_the_metrics_of_evenly_spaced_rows(self, table: Tensor, reference: Tensor) -> None:
        groups = {"all": torch.arange(N), "rare": torch.arange(N).flip(0)[:100]}
        figures = measure_table(table, groups, reference=reference, sample=34)
        ids = torch.arange(N - 1, N - 101, -3)
        assert len(ids) == 34
        expected = {
            "defemb/isotropy/rare": isotropy(table[ids]),
            "defemb/average_cosine/rare": average_cosine(table[ids]),
            "defemb/effective_rank/rare": effective_rank(table[ids]),
            "defemb/isoscore/rare": isoscore(table[ids]),
            "defemb/norm/rare": mean_norm(table[ids]),
            "defemb/drift/rare": drift(table[ids], reference[ids]),
        }
        assert {key: figures[key] for key in expected} == pytest.approx(expected, rel=1e-9)

    def test_large_enough_is_exact(self, table: Tensor, groups: dict[str, Tensor]) -> None:
        assert measure_table(table, groups, sample=N) == measure_table(table, groups)

    def test_always_the_same_rows(self, table: Tensor, groups: dict[str, Tensor]) -> None:
        figures = measure_table(table, groups, sample=50)
        assert figures == measure_table(table, groups, sample=50, seed=1)
        assert figures != measure_table(table, groups)

    def test_spectra_of_all_rows_are_not_those_of_the_sample(self, table: Tensor, groups: dict[str, Tensor]) -> None:
        measure = TableMeasure(groups, sample=50)
        assert measure.measure(table, spectra_by_group(table, groups)) == measure.measure(table)

    def test_pairs_and_neighbours_are_not_sampled(
        self, table: Tensor, reference: Tensor, groups: dict[str, Tensor], pairs: Tensor
    ) -> None:
        sampled = measure_table(table, groups, pairs=pairs, reference=reference, sample=50)
        exact = measure_table(table, groups, pairs=pairs, reference=reference)
        for name in groups:
            for metric in ("relation_auc", "neighbour_overlap"):
                assert sampled[f"defemb/{metric}/{name}"] == exact[f"defemb/{metric}/{name}"]

    def test_too_small(self, groups: dict[str, Tensor]) -> None:
        with pytest.raises(ValueError, match="sample must be at least 2, got 1"):
            TableMeasure(groups, sample=1)
        with pytest.raises(ValueError, match=r"sample must be at least 1, got 0\. Pass None to query every row"):
            TableMeasure(groups, reference=torch.randn(N, D), neighbour_sample=0)


def test_python_floats_only(table: Tensor, reference: Tensor, groups: dict[str, Tensor], pairs: Tensor) -> None:
    figures = measure_table(table, groups, pairs=pairs, reference=reference)
    assert all(type(value) is float and math.isfinite(value) for value in figures.values())


def test_without_pairs_and_reference_their_metrics_are_absent(table: Tensor, groups: dict[str, Tensor]) -> None:
    metrics = {key.split("/")[1] for key in measure_table(table, groups)}
    assert metrics == {"isotropy", "average_cosine", "effective_rank", "isoscore", "norm"}


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param({"a": torch.arange(0, 300), "b": torch.arange(200, N)}, id="groups that overlap"),
        pytest.param({"a": torch.arange(0, 100)}, id='a group partly outside "all"'),
        pytest.param({"a": torch.arange(10, N)}, id='a group that is "all"'),
        pytest.param({}, id="no group"),
    ],
)
def test_isotropy_of_all_whatever_its_parts(table: Tensor, parts: dict[str, Tensor]) -> None:
    everything = torch.arange(10, N)
    figures = measure_table(table, {"all": everything, **parts})
    for name, ids in {"all": everything, **parts}.items():
        assert figures[f"defemb/isotropy/{name}"] == pytest.approx(isotropy(table[ids]), rel=1e-9)


def test_order_of_ids_does_not_matter(table: Tensor, groups: dict[str, Tensor]) -> None:
    flipped = {name: ids.flip(0) for name, ids in groups.items()}
    assert measure_table(table, flipped) == pytest.approx(measure_table(table, groups), rel=1e-9)


@pytest.mark.parametrize(
    "rare", [torch.tensor([], dtype=torch.int64), torch.tensor([7]), torch.tensor([7, 8])], ids=["no", "one", "zero"]
)
def test_group_too_small_has_no_keys(table: Tensor, pairs: Tensor, rare: Tensor) -> None:
    table[7:9] = 0
    figures = measure_table(table, {"all": torch.arange(N), "rare": rare}, pairs=pairs, reference=table)
    assert not [key for key in figures if key.endswith("/rare")]
    assert len([key for key in figures if key.endswith("/all")]) == 8


def test_too_few_pairs_have_no_score(table: Tensor, groups: dict[str, Tensor]) -> None:
    pairs = torch.tensor([[20 + i, 100 + i] for i in range(10)] + [[20, 450 + i] for i in range(9)])
    figures = measure_table(table, groups, pairs=pairs)
    assert {key for key in figures if "relation_auc" in key} == {
        "defemb/relation_auc/all",
        "defemb/relation_auc/frequent",
    }


def test_too_few_rows_for_neighbours(table: Tensor) -> None:
    figures = measure_table(table[:10], {"all": torch.arange(10)}, reference=table[:10])
    assert "defemb/drift/all" in figures
    assert "defemb/neighbour_overlap/all" not in figures


def test_nothing_measurable_is_an_empty_dict(table: Tensor) -> None:
    assert measure_table(torch.zeros(20, 3), {"all": torch.arange(20)}, reference=torch.zeros(20, 3)) == {}
    assert measure_table(table, {"all": torch.tensor([], dtype=torch.int64)}) == {}


def test_unchanged_table(table: Tensor, groups: dict[str, Tensor]) -> None:
    figures = measure_table(table, groups, reference=table.clone())
    for name in groups:
        assert figures[f"defemb/drift/{name}"] == 0
        assert figures[f"defemb/neighbour_overlap/{name}"] == 1


def test_a_change_shows_in_its_group_only(table: Tensor, groups: dict[str, Tensor]) -> None:
    changed = table.clone()
    changed[groups["rare"]] += 1
    before, after = measure_table(table, groups, reference=table), measure_table(changed, groups, reference=table)
    for metric in ("isotropy", "average_cosine", "effective_rank", "norm", "drift"):
        assert after[f"defemb/{metric}/rare"] != before[f"defemb/{metric}/rare"]
        assert after[f"defemb/{metric}/medium"] == pytest.approx(before[f"defemb/{metric}/medium"], rel=1e-12)


def test_parameter(table: Tensor, groups: dict[str, Tensor]) -> None:
    assert measure_table(torch.nn.Parameter(table), groups) == measure_table(table, groups)


class TestErrors:
    def test_nan_names_the_row(self, table: Tensor, groups: dict[str, Tensor]) -> None:
        spoilt = table.clone()
        spoilt[321, 3] = float("nan")
        with pytest.raises(ValueError, match="row 321 of table has a NaN"):
            measure_table(spoilt, groups)
        with pytest.raises(ValueError, match="row 321 of reference has a NaN"):
            measure_table(table, groups, reference=spoilt)

    def test_no_group_all(self, table: Tensor) -> None:
        with pytest.raises(ValueError, match=r"groups must contain \"all\".*got \['rare'\]"):
            measure_table(table, {"rare": torch.arange(5)})

    def test_outside_the_table(self, table: Tensor) -> None:
        with pytest.raises(ValueError, match=f"group 'all' names row {N}, the table has rows 0 to {N - 1}"):
            measure_table(table, {"all": torch.tensor([0, N])})

    def test_negative(self, table: Tensor) -> None:
        with pytest.raises(ValueError, match="group 'all' must hold row ids of 0 or more, got -1"):
            measure_table(table, {"all": torch.tensor([0, -1])})

    def test_twice(self, table: Tensor) -> None:
        with pytest.raises(ValueError, match="group 'all' names a row twice"):
            measure_table(table, {"all": torch.tensor([0, 1, 0])})

    def test_dtype_of_ids(self, table: Tensor) -> None:
        with pytest.raises(TypeError, match="group 'all' must be a one-dimensional int64 tensor"):
            measure_table(table, {"all": torch.ones(N, dtype=torch.bool)})

    def test_groups_that_share_a_token_cannot_share_out_pairs(self, table: Tensor, pairs: Tensor) -> None:
        groups = {"all": torch.arange(N), "frequent": torch.arange(10), "rare": torch.arange(9, 20)}
        with pytest.raises(ValueError, match="token 9 is in group 'rare'"):
            measure_table(table, groups, pairs=pairs)

    def test_shape_of_reference(self, table: Tensor, groups: dict[str, Tensor]) -> None:
        with pytest.raises(ValueError, match=r"reference must have the table's shape \(500, 12\), got \(500, 11\)"):
            measure_table(table, groups, reference=table[:, 1:])
        with pytest.raises(ValueError, match="group 'all' names row 499, the reference has rows 0 to 498"):
            measure_table(table, groups, reference=table[1:])

    def test_table(self, groups: dict[str, Tensor]) -> None:
        with pytest.raises(TypeError, match="floating-point"):
            measure_table(torch.ones(N, D, dtype=torch.int64), groups)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of a process")
def test_a_half_precision_table_is_never_copied_as_a_whole() -> None:
    """In a process of its own: the most memory held, less what was held before, with every metric in use."""
    script = """
import sys, torch
from pathlib import Path
from defemb_callbacks.metrics import TableMeasure

def held(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

def measure(n):
    table = torch.empty(n, 256, dtype=torch.bfloat16).uniform_(-1, 1)
    pairs = torch.randint(n // 2, (5000, 2)) + torch.tensor([0, n // 2])
    ids = torch.arange(n)
    groups = {"all": ids, "frequent": ids[: n // 3], "rare": ids[n // 3 :]}
    made = TableMeasure(groups, pairs=pairs, reference=table.clone())
    before = held("VmRSS")
    made.measure(table)
    return table.nbytes, held("VmHWM") - before

measure(1000)
print(*measure(int(sys.argv[1])))
"""
    command = [sys.executable, "-c", script, "300000"]
    source = str(Path(__file__).resolve().parents[2] / "src")
    environment = os.environ | {"PYTHONPATH": source}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    table_bytes, extra_bytes = map(int, output.split())
    assert extra_bytes < table_bytes / 2, "a float32 copy would take twice the table"


@pytest.mark.parametrize("zero_rows", [0, 1])
def test_an_unchanged_table_has_no_drift_and_all_its_neighbours(zero_rows) -> None:
    table = torch.randn(60, 6)
    table[:zero_rows] = 0
    groups = {"all": torch.arange(50), "frequent": torch.arange(20), "rare": torch.arange(49, 50)}
    measure = TableMeasure(groups, reference=table.clone())
    unchanged = measure.measure(table)
    scaled = measure.measure(2 * table)  # the same directions, but no longer equal: takes the general path
    changes = {key: value for key, value in unchanged.items() if "drift" in key or "overlap" in key}
    assert changes == {key: value for key, value in scaled.items() if "drift" in key or "overlap" in key}
    assert changes == {
        "defemb/drift/all": 0.0,
        "defemb/drift/frequent": 0.0,
        "defemb/neighbour_overlap/all": 1.0,
        "defemb/neighbour_overlap/frequent": 1.0,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_kept_reference_does_not_change_with_the_table(dtype: torch.dtype) -> None:
    table = torch.randn(30, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    measure = TableMeasure({"all": torch.arange(30)}, reference=table)
    measure.keep_reference()
    assert measure.measure(table)["defemb/drift/all"] == 0.0
    before = table.clone()
    table[0] *= -1
    figures = measure.measure(table)
    assert figures["defemb/drift/all"] == pytest.approx(2 / 30)
    expected = TableMeasure({"all": torch.arange(30)}, reference=before).measure(table)
    assert figures == expected


def test_tables_are_equal_if_all_their_blocks_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["defemb_callbacks.metrics.drift"], "LAUNCHED", 16)
    table = torch.randn(7, 8, generator=torch.Generator().manual_seed(0)).half()
    other = table.clone()
    assert equal_tables(table, other)
    other[6, 7] += 1
    assert not equal_tables(table, other)
