"""Every metric against a direct implementation in float64 numpy and scipy, on ordinary and degenerate tables.

No reference shares a line with the library: eigenvectors one at a time, cosines as a full matrix, singular values of
the table itself, Mann and Whitney's U, Spearman's ρ and IsoScore from their own packages.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from defemb_callbacks.metrics import (
    Ratings,
    average_cosine,
    drift,
    effective_rank,
    isoscore,
    isotropy,
    mean_norm,
    measure_table,
    neighbour_overlap,
    rating_correlation,
    relation_auc,
    singular_values,
)
from defemb_callbacks.metrics.semantics import shuffled_pairs
from defemb_callbacks.metrics.spectrum import Spectrum

Array = NDArray[np.float64]


def rows_of(table: Tensor) -> Array:
    return table.detach().to(torch.float64).numpy()


def unit(rows: Array) -> Array:
    return np.array([row / np.linalg.norm(row) if row.any() else row for row in rows])


def plain_isotropy(rows: Array, vectors: Array, both_signs: bool = True) -> float:
    partition = []
    for c in vectors.T:
        for direction in (c, -c) if both_signs else (c,):
            partition.append(math.fsum(math.exp(min(max(float(direction @ row), -50), 50)) for row in rows))
    return min(partition) / max(partition)


def plain_average_cosine(rows: Array) -> float:
    directions = unit(rows[rows.any(axis=1)])
    cosines = directions @ directions.T
    return float(cosines[~np.eye(len(directions), dtype=bool)].mean())


def plain_effective_rank(rows: Array) -> float:
    sigma = scipy.linalg.svdvals(rows)
    return float(np.exp(scipy.stats.entropy(sigma)))


def plain_isoscore(rows: Array) -> float:
    """Algorithm 1 of the paper, step by step."""
    dim = rows.shape[1]
    variances = np.abs(np.linalg.eigvalsh(np.cov(rows, rowvar=False, bias=True)))
    normalised = np.sqrt(dim) * variances / np.linalg.norm(variances)
    defect = np.linalg.norm(normalised - 1) / np.sqrt(2 * (dim - np.sqrt(dim)))
    share = (dim - defect**2 * (dim - np.sqrt(dim))) ** 2 / dim**2
    return float((dim * share - 1) / (dim - 1))


def plain_drift(rows: Array, before: Array) -> float:
    changes = []
    for now, then in zip(rows, before, strict=True):
        if now.any() and then.any():
            changes.append(1 - now @ then / (np.linalg.norm(now) * np.linalg.norm(then)))
        elif now.any() or then.any():
            changes.append(1.0)
    return float(np.mean(changes))


def plain_neighbour_overlap(rows: Array, before: Array, k: int) -> float:
    shares = []
    nearest = []
    for table in (rows, before):
        cosines = unit(table) @ unit(table).T
        np.fill_diagonal(cosines, -np.inf)
        nearest.append(np.argsort(-cosines, axis=1)[:, :k])
    for now, then in zip(*nearest, strict=True):
        shares.append(len(set(now) & set(then)) / k)
    return float(np.mean(shares))


def plain_relation_auc(rows: Array, pairs: Array, shuffled: Array) -> float:
    directions = unit(rows)
    directions = directions - directions[np.unique(pairs)].mean(axis=0)
    # nearer to the mean than this is the mean
    directions = unit(np.where(np.linalg.norm(directions, axis=1, keepdims=True) > 1.2e-7, directions, 0))
    related, others = ([directions[a] @ directions[b] for a, b in some] for some in (pairs, shuffled))
    statistic = scipy.stats.mannwhitneyu(np.round(related, 6), np.round(others, 6)).statistic
    return float(statistic / len(pairs) ** 2)


def plain_rating_correlation(rows: Array, pairs: Array, scores: Array) -> float:
    rows = rows - rows[np.unique(pairs)].mean(axis=0)
    cosines = [unit(rows[a : a + 1])[0] @ unit(rows[b : b + 1])[0] for a, b in pairs]
    return float(scipy.stats.spearmanr(np.round(cosines, 12), scores).statistic)


def random_table(n: int = 300, d: int = 16, seed: int = 0) -> Tensor:
    """Rows with a common direction and unequal variances, as in embedding tables."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.linspace(0.2, 0.6, d) + 0.2


def row_norms(smallest: float, largest: float, n: int = 300) -> Tensor:
    return torch.logspace(math.log10(smallest), math.log10(largest), n, dtype=torch.float64)[
        torch.randperm(n, generator=torch.Generator().manual_seed(3))
    ][:, None]


TABLES = {
    "random": random_table(),
    "fewer rows than columns": random_table(12, 40),
    "two rows": random_table(2, 5),
    "long rows": 20 * random_table(),
    "rank 1": torch.outer(torch.linspace(-1, 2, 300), torch.linspace(0.1, 1, 16)).double(),
    "zero rows": torch.cat([random_table(200), torch.zeros(100, 16, dtype=torch.float64)]),
    "strong mean": random_table() + 100,
    "all short": 1e-30 * random_table(),
    "all long": 1e30 * random_table(),
    "short and long": row_norms(1e-30, 1e30) * random_table(),
}


def tables_but(*left_out: str) -> pytest.MarkDecorator:
    params = [pytest.param(table, id=name) for name, table in TABLES.items() if name not in left_out]
    return pytest.mark.parametrize("table", params)


dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


@tables_but()
@dtypes
class TestEveryTable:
    @pytest.mark.parametrize("both_signs", [True, False])
    def test_isotropy(self, table: Tensor, dtype: torch.dtype, both_signs: bool) -> None:
        table = table.to(dtype)
        # The eigenvectors are given: for rank 1, or rows of very different lengths, most of them are rounding errors.
        spectrum = Spectrum.of_table(table)
        expected = plain_isotropy(rows_of(table), spectrum.eigenvectors.numpy(), both_signs)
        assert isotropy(table, both_signs=both_signs, spectrum=spectrum) == pytest.approx(expected, rel=1e-9)

    def test_average_cosine(self, table: Tensor, dtype: torch.dtype) -> None:
        expected = plain_average_cosine(rows_of(table.to(dtype)))
        assert average_cosine(table.to(dtype)) == pytest.approx(expected, abs=1e-12)

    def test_effective_rank(self, table: Tensor, dtype: torch.dtype) -> None:
        expected = plain_effective_rank(rows_of(table.to(dtype)))
        assert effective_rank(table.to(dtype)) == pytest.approx(expected, rel=1e-5)

    def test_singular_values(self, table: Tensor, dtype: torch.dtype) -> None:
        expected = scipy.linalg.svdvals(rows_of(table.to(dtype)))
        np.testing.assert_allclose(singular_values(table.to(dtype)).numpy(), expected, atol=1e-6 * expected[0])

    def test_isoscore(self, table: Tensor, dtype: torch.dtype) -> None:
        expected = plain_isoscore(rows_of(table.to(dtype)))
        assert isoscore(table.to(dtype)) == pytest.approx(expected, rel=1e-9, abs=1e-12)

    def test_mean_norm(self, table: Tensor, dtype: torch.dtype) -> None:
        expected = np.linalg.norm(rows_of(table.to(dtype)), axis=1).mean()
        assert mean_norm(table.to(dtype)) == pytest.approx(expected, rel=1e-12)

    def test_drift(self, table: Tensor, dtype: torch.dtype) -> None:
        table, reference = table.to(dtype), (table + 0.3 * table.roll(1, dims=0)).to(dtype)
        assert drift(table, reference) == pytest.approx(plain_drift(rows_of(table), rows_of(reference)), abs=1e-12)

    def test_relation_auc(self, table: Tensor, dtype: torch.dtype) -> None:
        pairs = some_pairs(len(table))
        expected = plain_relation_auc(rows_of(table.to(dtype)), pairs.numpy(), shuffled_pairs(pairs).numpy())
        assert relation_auc(table.to(dtype), pairs) == pytest.approx(expected, abs=1e-6)


@tables_but("rank 1", "zero rows")  # rows of equal cosine: the choice of neighbours among them is arbitrary
@dtypes
def test_neighbour_overlap(table: Tensor, dtype: torch.dtype) -> None:
    noise = torch.randn(table.shape, dtype=table.dtype)
    table, reference = table.to(dtype), (table * (1 + 0.3 * noise)).to(dtype)
    k = min(10, len(table) - 1)
    expected = plain_neighbour_overlap(rows_of(table), rows_of(reference), k)
    assert neighbour_overlap(table, reference, k=k) == pytest.approx(expected, abs=1e-9)


@tables_but("two rows")  # all cosines are equal
@dtypes
def test_rating_correlation(table: Tensor, dtype: torch.dtype) -> None:
    pairs, scores = some_pairs(len(table)), some_scores()
    expected = plain_rating_correlation(rows_of(table.to(dtype)), pairs.numpy(), scores.numpy())
    assert rating_correlation(table.to(dtype), pairs, scores) == pytest.approx(expected, abs=1e-9)


def some_pairs(n: int, m: int = 200) -> Tensor:
    left, step = torch.randint(n, (m,)), torch.randint(1, n, (m,))  # the seed is fixed for each test
    return torch.stack([left, (left + step) % n], dim=1)


def some_scores(m: int = 200) -> Tensor:
    return torch.randint(11, (m,)).double()


class TestConstantTable:
    """All rows are the same."""

    table = torch.full((30, 6), 0.7)

    def test_values(self) -> None:
        rows = rows_of(self.table)
        assert average_cosine(self.table) == pytest.approx(1, abs=1e-15)
        assert effective_rank(self.table) == pytest.approx(plain_effective_rank(rows), rel=1e-6)
        spectrum = Spectrum.of_table(self.table)
        assert isotropy(self.table) == pytest.approx(plain_isotropy(rows, spectrum.eigenvectors.numpy()), rel=1e-9)
        assert relation_auc(self.table, some_pairs(30)) == 0.5

    def test_no_variance_gives_no_score(self) -> None:
        with pytest.raises(ValueError, match="all rows are the same"):
            isoscore(self.table)
        with pytest.raises(ValueError, match="every cosine is 0"):
            rating_correlation(self.table, some_pairs(30), some_scores())

    def test_measured(self) -> None:
        ratings = Ratings(some_pairs(30), some_scores())
        figures = measure_table(self.table, {"all": torch.arange(30)}, reference=self.table, ratings=ratings)
        assert {key.split("/")[1] for key in figures} == {
            "isotropy",
            "average_cosine",
            "effective_rank",
            "norm",
            "drift",
            "neighbour_overlap",
        }


def test_one_row() -> None:
    """Two eigenvalues of a single row's EᵀE are 0; its own direction holds e^±|e|."""
    row = torch.tensor([[1.0, 2.0, 2.0]])
    assert isotropy(row) == pytest.approx(math.exp(-6), rel=1e-12)
    assert effective_rank(row) == pytest.approx(1)
    assert mean_norm(row) == 3
    assert drift(row, -row) == pytest.approx(2)
    assert measure_table(row, {"all": torch.arange(1)}, reference=row) == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tables_are_read_as_they_are(dtype: torch.dtype) -> None:
    table = random_table(400).to(dtype)
    reference = (table.double() + 0.1 * random_table(400, seed=1)).to(dtype)
    pairs = some_pairs(400)
    groups = {"all": torch.arange(400)}
    figures = measure_table(table, groups, reference=reference, pairs=pairs, neighbour_sample=None)
    rows, before = rows_of(table), rows_of(reference)
    expected = {
        "isotropy": plain_isotropy(rows, np.linalg.eigh(rows.T @ rows).eigenvectors),
        "average_cosine": plain_average_cosine(rows),
        "effective_rank": plain_effective_rank(rows),
        "isoscore": plain_isoscore(rows),
        "norm": np.linalg.norm(rows, axis=1).mean(),
        "relation_auc": plain_relation_auc(rows, pairs.numpy(), shuffled_pairs(pairs).numpy()),
        "drift": plain_drift(rows, before),
        "neighbour_overlap": plain_neighbour_overlap(rows, before, 10),
    }
    assert figures == pytest.approx({f"defemb/{name}/all": value for name, value in expected.items()}, rel=1e-6)


def test_a_real_table_by_group(minilm_dir: Path) -> None:
    weights = load_file(minilm_dir / "model.safetensors")
    table = next(weight for name, weight in weights.items() if name.endswith("word_embeddings.weight"))
    reference = table + 0.02 * torch.randn(table.shape, generator=torch.Generator().manual_seed(0))
    everything = torch.arange(1000, 2500)  # a full cosine matrix would not fit in memory
    groups = {
        "all": everything,
        "frequent": everything[:450],
        "medium": everything[450:1200],
        "rare": everything[1200:],
    }
    pairs = 1000 + some_pairs(1500, 3000)
    scores = some_scores(3000)
    figures = measure_table(
        table, groups, pairs=pairs, reference=reference, ratings=Ratings(pairs, scores), neighbour_sample=None
    )
    expected: dict[str, float] = {}
    for name, ids in groups.items():
        rows, before = rows_of(table[ids]), rows_of(reference[ids])
        exponents = np.clip(rows @ np.linalg.eigh(rows.T @ rows).eigenvectors, -50, 50)
        partition = np.concatenate([np.exp(exponents).sum(axis=0), np.exp(-exponents).sum(axis=0)])
        expected |= {
            f"defemb/isotropy/{name}": partition.min() / partition.max(),
            f"defemb/average_cosine/{name}": plain_average_cosine(rows),
            f"defemb/effective_rank/{name}": plain_effective_rank(rows),
            f"defemb/isoscore/{name}": plain_isoscore(rows),
            f"defemb/norm/{name}": np.linalg.norm(rows, axis=1).mean(),
            f"defemb/drift/{name}": plain_drift(rows, before),
        }
    assert {key: figures[key] for key in expected} == pytest.approx(expected, rel=1e-6)
    all_rows, rows_before = rows_of(table[everything]), rows_of(reference[everything])
    overlap = plain_neighbour_overlap(all_rows, rows_before, 10)
    assert figures["defemb/neighbour_overlap/all"] == pytest.approx(overlap, abs=1e-9)
    shuffled = shuffled_pairs(pairs)
    auc = plain_relation_auc(all_rows, pairs.numpy() - 1000, shuffled.numpy() - 1000)
    assert figures["defemb/relation_auc/all"] == pytest.approx(auc, abs=1e-6)
    rho = plain_rating_correlation(all_rows, pairs.numpy() - 1000, scores.numpy())
    assert figures["defemb/rating_correlation/all"] == pytest.approx(rho, abs=1e-9)


LIMITS = {
    "isotropy": (0, 1),
    "average_cosine": (-1, 1),
    "effective_rank": (1, math.inf),
    "isoscore": (0, 1),
    "norm": (0, math.inf),
    "relation_auc": (0, 1),
    "rating_correlation": (-1, 1),
    "drift": (0, 2),
    "neighbour_overlap": (0, 1),
}
# No float32 entry is beyond these, and many rows will be equal, zero, parallel, or very short and very long.
entries = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.1, 1e-38, -1e-30, 1e30, -3e38]) | st.floats(-5, 5, width=32)


@st.composite
def anything(draw: st.DrawFn) -> dict[str, object]:
    """A table, groups that need not cover it, a reference, pairs and ratings."""
    n, d = draw(st.integers(1, 24)), draw(st.integers(1, 4))
    shape = st.lists(st.lists(entries, min_size=d, max_size=d), min_size=n, max_size=n)
    group_of_row = torch.tensor(draw(st.lists(st.integers(-1, 2), min_size=n, max_size=n)))
    pairs = torch.zeros(0, 2, dtype=torch.int64)
    scores = torch.zeros(0, dtype=torch.float64)
    if n > 1:
        m = draw(st.integers(0, 15))
        word, step = st.integers(0, n - 1), st.integers(1, n - 1)
        left = torch.tensor(draw(st.lists(word, min_size=m, max_size=m)), dtype=torch.int64)
        steps = torch.tensor(draw(st.lists(step, min_size=m, max_size=m)), dtype=torch.int64)
        pairs = torch.stack([left, (left + steps) % n], dim=1)
        scores = torch.tensor(draw(st.lists(st.floats(0, 10), min_size=m, max_size=m)), dtype=torch.float64)
    return {
        "table": torch.tensor(draw(shape), dtype=draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))),
        "groups": {"all": (group_of_row >= -1 + draw(st.integers(0, 1))).nonzero()[:, 0]}
        | {name: (group_of_row == i).nonzero()[:, 0] for i, name in enumerate(("frequent", "medium", "rare"))},
        "reference": torch.tensor(draw(shape)),
        "pairs": pairs,
        "ratings": Ratings(pairs, scores),
        "sample": draw(st.none() | st.integers(2, 5)),
    }


@settings(max_examples=150, deadline=None)
@given(anything())
def test_never_nan_and_always_in_range(arguments: dict[str, object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = measure_table(**arguments)  # type: ignore[arg-type]
    table, groups = arguments["table"], arguments["groups"]
    assert isinstance(table, Tensor)
    assert isinstance(groups, dict)
    for key, value in figures.items():
        metric, group = key.removeprefix("defemb/").split("/")
        low, high = LIMITS[metric]
        assert type(value) is float
        assert low <= value <= high, key
        assert int(table[groups[group]].any(dim=1).sum()) >= 2
    if arguments["sample"] is None:
        measurable = {name for name, ids in groups.items() if int(table[ids].any(dim=1).sum()) >= 2}
        assert {key.split("/")[2] for key in figures} == measurable
