"""Rating files are read, or the bad line is named; the correlation equals scipy's and a reference score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from defemb_callbacks.metrics import Ratings, measure_table, rating_correlation, read_ratings

LINES = [("old", "new", 1.58), ("smart", "intelligent", 9.2), ("hard", "difficult", 8.77)]


class TestReadRatings:
    @pytest.mark.parametrize("separator", ["\t", ",", ";", " ", "  \t", " , ", "; "])
    @pytest.mark.parametrize("header", [(), ("word1", "word2", "rating")])
    def test_separators_and_header(self, tmp_path: Path, separator: str, header: tuple[str, ...]) -> None:
        path = tmp_path / "ratings.txt"
        path.write_text("\n".join(separator.join(map(str, line)) for line in [header, *LINES] if line) + "\n")
        assert read_ratings(path) == LINES
        assert read_ratings(str(path)) == LINES

    def test_more_fields_empty_lines_and_windows(self, tmp_path: Path) -> None:
        path = tmp_path / "ratings.tsv"
        path.write_bytes(
            "\ufeffWord 1\tWord 2\tHuman (mean)\tsd\r\nnew york\tcity\t7\t1.2\r\n\r\nnaïve\tfroid\t-1e1\tx\r\n".encode()
        )
        assert read_ratings(path) == [("new york", "city", 7.0), ("naïve", "froid", -10.0)]

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("old\tnew\t1.5\nsmart\tintelligent\n", 2),
            ("old new 1.5\nsmart intelligent high\n", 2),
            ("word1 word2 rating\nold new good\n", 2),
            ("old new\n", 1),
            ("old new 1\nsmart intelligent nan\n", 2),
            ("old new 1\nsmart intelligent inf\n", 2),
            ("old,new,1\n,intelligent,3\n", 2),
        ],
    )
    def test_bad_line_is_named(self, tmp_path: Path, text: str, line: int) -> None:
        path = tmp_path / "ratings.txt"
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"ratings.txt, line {line}: .* is not 'word, word, rating'"):
            read_ratings(path)

    @pytest.mark.parametrize("text", ["", "\n\n", "word1 word2 rating\n"])
    def test_no_ratings(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "ratings.txt"
        path.write_text(text)
        with pytest.raises(ValueError, match="has no line 'word, word, rating'"):
            read_ratings(path)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"'missing\.txt' does not exist"):
            read_ratings("missing.txt")

    def test_real_files(self, data_dir: Path) -> None:
        counts = {path.stem: len(read_ratings(path)) for path in (data_dir / "wordsim").glob("*.txt")}
        assert counts == {"MEN-3000": 3000, "RareWords-2034": 2034, "SimLex-999": 999}


def rated(n: int = 300, m: int = 500, noise: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """A table, pairs, and ratings that follow its cosines as closely as the noise allows."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(n, 8, generator=generator) + 0.3
    left, step = torch.randint(n, (m,), generator=generator), torch.randint(1, n, (m,), generator=generator)
    pairs = torch.stack([left, (left + step) % n], dim=1)
    cosines = direct_cosines(table, pairs, centred=True)
    return table, pairs, (cosines + noise * torch.randn(m, generator=generator).double()).round(decimals=1)


def direct_cosines(table: Tensor, pairs: Tensor, centred: bool) -> Tensor:
    rows = table.double()
    rows = rows - rows[pairs.unique()].mean(dim=0) if centred else rows
    return torch.cosine_similarity(rows[pairs[:, 0]], rows[pairs[:, 1]])


class TestRatingCorrelation:
    @pytest.mark.parametrize("centred", [True, False])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_equals_scipy(self, centred: bool, dtype: torch.dtype) -> None:
        table, pairs, scores = rated()
        expected = scipy.stats.spearmanr(direct_cosines(table.to(dtype), pairs, centred), scores).statistic
        found = rating_correlation(table.to(dtype), pairs, scores, centred=centred)
        assert found == pytest.approx(expected, abs=1e-12)
        assert type(found) is float

    def test_known_values(self) -> None:
        table, pairs, _ = rated()
        scores = direct_cosines(table, pairs, centred=True)
        assert rating_correlation(table, pairs, scores) == pytest.approx(1)
        assert rating_correlation(table, pairs, -(scores**3)) == pytest.approx(-1)

    def test_more_noise_lower(self) -> None:
        values = [rating_correlation(*rated(noise=noise)) for noise in (0.1, 0.5, 3.0)]
        assert values == sorted(values, reverse=True)

    def test_a_common_direction_counts_only_uncentred(self) -> None:
        table, pairs, scores = rated()
        moved = table.double() + 100
        assert rating_correlation(moved, pairs, scores) == pytest.approx(rating_correlation(table, pairs, scores))
        plain = rating_correlation(table, pairs, scores, centred=False)
        assert rating_correlation(moved, pairs, scores, centred=False) != pytest.approx(plain, abs=0.01)

    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_extreme_norms(self, scale: float) -> None:
        table, pairs, scores = rated()
        expected = rating_correlation(table, pairs, scores)
        assert rating_correlation(table * scale, pairs, scores) == pytest.approx(expected, abs=1e-6)

    def test_equals_the_reference_score(self, data_dir: Path, minilm_dir: Path) -> None:
        """Cosines are centred by the mean of all rated tokens, the convention by which 0.786 was measured for MEN."""
        tokenizer = AutoTokenizer.from_pretrained(minilm_dir)
        weights = load_file(minilm_dir / "model.safetensors")
        table = next(weight for name, weight in weights.items() if name.endswith("word_embeddings.weight"))
        ids = tokenizer.get_vocab()
        rows = [
            (ids[left.lower()], ids[right.lower()], score)
            for left, right, score in read_ratings(data_dir / "wordsim" / "MEN-3000.txt")
            if left.lower() in ids and right.lower() in ids and left != right
        ]
        pairs, scores = torch.tensor([row[:2] for row in rows]), torch.tensor([row[2] for row in rows])
        assert len(pairs) == 2629
        assert rating_correlation(table, pairs, scores) == pytest.approx(0.786, abs=5e-4)


class TestByGroup:
    def test_each_pair_in_the_group_of_its_rarer_word(self) -> None:
        table, pairs, scores = rated()
        groups = {"all": torch.arange(300), "frequent": torch.arange(200), "rare": torch.arange(200, 290)}
        figures = measure_table(table, groups, ratings=Ratings(pairs, scores))
        cosines = direct_cosines(table, pairs, centred=True)
        highest = pairs.amax(dim=1)
        its = {"all": highest < 300, "frequent": highest < 200, "rare": (highest >= 200) & (highest < 290)}
        for name, chosen in its.items():
            expected = scipy.stats.spearmanr(cosines[chosen], scores[chosen]).statistic
            assert figures[f"defemb/rating_correlation/{name}"] == pytest.approx(expected, abs=1e-12)

    def test_groups_with_too_few_or_tied_pairs_have_no_key(self) -> None:
        table, pairs, scores = rated()
        groups = {"all": torch.arange(300), "frequent": torch.arange(100), "rare": torch.arange(100, 300)}
        rare = pairs.amax(dim=1) >= 100
        few = torch.cat([pairs[rare], pairs[~rare][:9]])
        figures = measure_table(table, groups, ratings=Ratings(few, scores[: len(few)]))
        assert {key for key in figures if "rating" in key} == {
            "defemb/rating_correlation/all",
            "defemb/rating_correlation/rare",
        }
        alike = Ratings(pairs, torch.where(rare, scores, 3.0))
        assert "defemb/rating_correlation/frequent" not in measure_table(table, groups, ratings=alike)


class TestErrors:
    table = torch.eye(4)
    pairs = torch.tensor([[0, 1], [1, 2], [2, 3]])
    scores = torch.tensor([1.0, 2.0, 3.0])

    def test_too_few(self) -> None:
        with pytest.raises(ValueError, match="at least 2 pairs, got 1"):
            rating_correlation(self.table, self.pairs[:1], self.scores[:1])

    def test_outside_the_table(self) -> None:
        with pytest.raises(ValueError, match="pairs name row 3, the table has rows 0 to 2"):
            rating_correlation(self.table[:3], self.pairs, self.scores)

    def test_lengths_differ(self) -> None:
        with pytest.raises(ValueError, match=r"scores must have shape \(3,\), one for each pair, got \(2,\)"):
            rating_correlation(self.table, self.pairs, self.scores[:2])

    @pytest.mark.parametrize("scores", [torch.tensor([1, 2, 3]), [1.0, 2.0, 3.0]])
    def test_scores_not_floating(self, scores: Tensor) -> None:
        with pytest.raises(TypeError, match=r"scores must be a floating-point tensor of .*, got (torch\.int64|list)"):
            rating_correlation(self.table, self.pairs, scores)

    def test_rating_not_finite(self) -> None:
        with pytest.raises(ValueError, match="the rating of pair 1 is not finite"):
            rating_correlation(self.table, self.pairs, torch.tensor([1.0, float("nan"), 2.0]))

    def test_all_ratings_or_cosines_equal(self) -> None:
        with pytest.raises(ValueError, match="every rating is 2"):
            rating_correlation(torch.randn(4, 3), self.pairs, torch.full((3,), 2.0))
        with pytest.raises(ValueError, match="every cosine is 0"):
            rating_correlation(torch.ones(4, 3), self.pairs, self.scores)

    def test_word_with_itself(self) -> None:
        with pytest.raises(ValueError, match="pair 1 relates token 2 to itself"):
            rating_correlation(self.table, torch.tensor([[0, 1], [2, 2]]), self.scores[:2])

    def test_nan_in_table(self) -> None:
        table = self.table.clone()
        table[2, 1] = np.nan
        with pytest.raises(ValueError, match="row 2 of table has a NaN"):
            rating_correlation(table, self.pairs, self.scores)
