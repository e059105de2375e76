"""relation_auc equals scipy's Mann–Whitney U, and the properties of re-paired words."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from defemb_callbacks.metrics import pairs_by_group, relation_auc
from defemb_callbacks.metrics.semantics import shuffled_pairs


def planted(n: int = 300, d: int = 12, strength: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A table where row i resembles row n + i, and the pairs (i, n + i)."""
    generator = torch.Generator().manual_seed(seed)
    left, noise = torch.randn(2, n, d, generator=generator)
    return torch.cat([left, strength * left + noise]), torch.stack([torch.arange(n), n + torch.arange(n)], dim=1)


def many_pairs(n: int = 60, m: int = 400, seed: int = 0) -> Tensor:
    """Pairs over few words, so that accidental true pairs would be common."""
    pairs = torch.randint(n, (m, 2), generator=torch.Generator().manual_seed(seed))
    return pairs[pairs[:, 0] != pairs[:, 1]].unique(dim=0)


def unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


def direct_auc(table: Tensor, pairs: Tensor, shuffled: Tensor, centred: bool = True) -> float:
    rows = unit(table.double().numpy())
    rows = unit(rows - rows[np.unique(pairs)].mean(axis=0)) if centred else rows
    positive, negative = ((rows[p[:, 0]] * rows[p[:, 1]]).sum(1) for p in (pairs.numpy(), shuffled.numpy()))
    # equal up to rounding is equal
    positive, negative = positive.round(12), negative.round(12)
    return float(scipy.stats.mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative)))


class TestRelationAuc:
    @pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("centred", [True, False])
    def test_equals_scipy(self, strength: float, dtype: torch.dtype, centred: bool) -> None:
        table, pairs = planted(strength=strength)
        table = (table + 0.5).to(dtype)
        expected = direct_auc(table, pairs, shuffled_pairs(pairs), centred)
        assert relation_auc(table, pairs, centred=centred) == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize(
        "table",
        [torch.ones(40, 4), torch.zeros(40, 4), torch.outer(torch.linspace(-1, 2, 40), torch.ones(4))],
        ids=["constant", "zero rows", "rank 1"],
    )
    def test_equals_scipy_on_ties(self, table: Tensor) -> None:
        pairs = many_pairs(40)
        assert relation_auc(table, pairs) == pytest.approx(direct_auc(table, pairs, shuffled_pairs(pairs)), abs=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_rounding_errors_are_ties(self, dtype: torch.dtype) -> None:
        one_direction = torch.outer(torch.linspace(1, 2, 40).double(), torch.linspace(0.1, 1, 24).double()).to(dtype)
        assert relation_auc(one_direction, many_pairs(40)) == 0.5

    def test_known_values(self) -> None:
        table, pairs = planted(strength=100)
        assert relation_auc(table, pairs) > 0.999
        assert relation_auc(torch.ones(600, 4), pairs) == 0.5
        table, pairs = planted(strength=-100)
        assert relation_auc(table, pairs) < 0.001

    def test_random_rows_score_one_half(self) -> None:
        scores = [relation_auc(*planted(strength=0, seed=seed)) for seed in range(20)]
        assert np.mean(scores) == pytest.approx(0.5, abs=0.02)

    def test_invariant_to_lengths_and_rotation(self) -> None:
        table, pairs = planted()
        table = table.double()
        turn = torch.linalg.qr(table[:12]).Q
        lengths = 2.0 ** (torch.arange(600, dtype=torch.float64) % 7)
        assert relation_auc(table * lengths[:, None], pairs) == relation_auc(table, pairs)
        assert relation_auc(table @ turn, pairs) == pytest.approx(relation_auc(table, pairs), abs=1e-9)

    def test_hub_words_do_not_affect_the_score(self) -> None:
        """Rows that are near to all others, but not to related ones: still one half."""
        table, pairs = planted(n=2000, strength=0)
        table[:500] += 3
        table[2000:2500] += 3  # the frequent words of both sides, paired with each other at the rate of chance
        right = torch.randperm(2000, generator=torch.Generator().manual_seed(5)) + 2000
        assert relation_auc(table, torch.stack([pairs[:, 0], right], dim=1)) == pytest.approx(0.5, abs=0.03)

    def test_a_common_direction_does_not_matter(self) -> None:
        table, pairs = planted()
        shifted = table + torch.linspace(0, 10, 12)
        assert relation_auc(shifted, pairs) == pytest.approx(relation_auc(table, pairs), abs=0.01)
        assert relation_auc(shifted, pairs, centred=False) < relation_auc(table, pairs, centred=False) - 0.02

    def test_rows_in_no_pair_do_not_matter(self) -> None:
        table, pairs = planted()
        assert relation_auc(torch.cat([table, 100 + table]), pairs) == relation_auc(table, pairs)

    def test_same_seed_same_score(self) -> None:
        table, pairs = planted()
        assert relation_auc(table, pairs) == relation_auc(table, pairs)
        assert relation_auc(table, pairs) != relation_auc(table, pairs, seed=1)


class TestShuffledPairs:
    def test_same_words_equally_often(self) -> None:
        pairs = many_pairs()
        shuffled = shuffled_pairs(pairs)
        assert torch.equal(shuffled[:, 0], pairs[:, 0])
        assert torch.equal(shuffled[:, 1].sort().values, pairs[:, 1].sort().values)

    def test_no_true_pair_in_either_order_and_no_word_with_itself(self) -> None:
        pairs = many_pairs()
        related = {frozenset(pair) for pair in pairs.tolist()}
        shuffled = shuffled_pairs(pairs).tolist()
        assert not [pair for pair in shuffled if frozenset(pair) in related or pair[0] == pair[1]]

    def test_every_word_gets_another_partner(self) -> None:
        pairs = torch.stack([torch.arange(50), 50 + torch.arange(50)], dim=1)
        assert not (shuffled_pairs(pairs) == pairs).all(dim=1).any()

    def test_shuffle_depends_on_the_seed_only(self) -> None:
        pairs = many_pairs()
        assert torch.equal(shuffled_pairs(pairs), shuffled_pairs(pairs))
        assert not torch.equal(shuffled_pairs(pairs), shuffled_pairs(pairs, seed=1))

    def test_pairs_without_an_alternative_stay(self) -> None:
        star = torch.tensor([[0, 1], [0, 2], [0, 3]])  # every right word is related to the only left word
        assert sorted(shuffled_pairs(star)[:, 1].tolist()) == [1, 2, 3]
        assert relation_auc(torch.randn(4, 3), star) == 0.5


class TestPairsByGroup:
    groups: ClassVar = {"frequent": torch.arange(0, 10), "medium": torch.arange(10, 30), "rare": torch.arange(30, 40)}

    def test_a_pair_belongs_to_its_rarer_word(self) -> None:
        pairs = torch.tensor([[0, 1], [0, 12], [35, 12], [3, 30], [0, 45], [45, 46]])
        chosen = {name: part.tolist() for name, part in pairs_by_group(pairs, self.groups).items()}
        assert chosen == {
            "all": pairs.tolist(),
            "frequent": [[0, 1]],
            "medium": [[0, 12]],
            "rare": [[35, 12], [3, 30]],
        }

    def test_groups_partition_the_pairs(self) -> None:
        pairs = many_pairs(40)
        chosen = pairs_by_group(pairs, self.groups)
        assert list(chosen) == ["all", "frequent", "medium", "rare"]
        parts = [tuple(pair) for name in self.groups for pair in chosen[name].tolist()]
        assert Counter(parts) == Counter(map(tuple, pairs.tolist()))

    def test_no_pairs_and_empty_groups(self) -> None:
        none = torch.empty(0, 2, dtype=torch.int64)
        assert all(not len(part) for part in pairs_by_group(none, self.groups).values())
        empty = {"rare": torch.empty(0, dtype=torch.int64)}
        assert not len(pairs_by_group(torch.tensor([[0, 1]]), empty)["rare"])

    def test_overlapping_groups(self) -> None:
        with pytest.raises(ValueError, match="token 2 is in group 'rare' and in a group before it"):
            pairs_by_group(torch.tensor([[0, 1]]), {"frequent": torch.arange(3), "rare": torch.tensor([2, 7])})

    def test_group_all(self) -> None:
        with pytest.raises(ValueError, match='must not contain "all"'):
            pairs_by_group(torch.tensor([[0, 1]]), {"all": torch.arange(3)})

    def test_negative_id_in_a_group(self) -> None:
        with pytest.raises(ValueError, match="group 'rare' must hold row ids of 0 or more, got -1"):
            pairs_by_group(torch.tensor([[0, 1]]), {"rare": torch.tensor([3, -1])})


class TestErrors:
    table = torch.eye(5)

    def test_too_few(self) -> None:
        with pytest.raises(ValueError, match="at least 2 pairs, got 1"):
            relation_auc(self.table, torch.tensor([[0, 1]]))

    def test_outside_the_table(self) -> None:
        with pytest.raises(ValueError, match="pairs name row 5, the table has rows 0 to 4"):
            relation_auc(self.table, torch.tensor([[0, 1], [5, 2]]))
        with pytest.raises(ValueError, match="row ids of 0 or more, got -1"):
            relation_auc(self.table, torch.tensor([[0, 1], [-1, 2]]))

    def test_dtype(self) -> None:
        with pytest.raises(TypeError, match=r"int64 tensor of row ids, got torch\.int32"):
            relation_auc(self.table, torch.tensor([[0, 1], [1, 2]], dtype=torch.int32))
        with pytest.raises(TypeError, match="got list"):
            relation_auc(self.table, [(0, 1)])  # type: ignore[arg-type]

    def test_shape(self) -> None:
        with pytest.raises(ValueError, match=r"shape \(m, 2\), got \(2, 3\)"):
            relation_auc(self.table, torch.tensor([[0, 1, 2], [1, 2, 3]]))

    def test_word_with_itself(self) -> None:
        with pytest.raises(ValueError, match="pair 1 relates token 3 to itself"):
            relation_auc(self.table, torch.tensor([[0, 1], [3, 3]]))

    def test_nan(self) -> None:
        with pytest.raises(ValueError, match="row 0 of table"):
            relation_auc(self.table * float("nan"), torch.tensor([[0, 1], [1, 2]]))
