"""k-means and the number of clusters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from defemb_callbacks.senses.clustering import (
    kmeans,
    kmeans_plus_plus,
    markov_clusters,
    markov_number,
    silhouette_number,
)


def blobs(sets: int, size: int, number: int, width: int = 8, distance: float = 20.0) -> tuple[Tensor, Tensor]:
    """Points of well separated Gaussian clusters, and their labels."""
    generator = torch.Generator().manual_seed(3)
    middles = distance * torch.nn.functional.normalize(torch.randn(sets, number, width, generator=generator), dim=2)
    labels = torch.arange(size).expand(sets, size) % number
    noise = torch.randn(sets, size, width, generator=generator)
    return middles.gather(1, labels[..., None].expand(-1, -1, width)) + noise + 7.0, labels


def test_inertia_matches_scikit_learn_from_the_same_centroids() -> None:
    sklearn = pytest.importorskip("sklearn.cluster")
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([90, 60, 31, 25])
    points = torch.randn(4, 90, 12, generator=generator) + torch.randint(0, 4, (4, 90, 1), generator=generator)
    starts = kmeans_plus_plus(points, sizes, 8)
    found = kmeans(points, sizes, torch.full((4,), 8), starts=starts)
    for number, size in enumerate(sizes.tolist()):
        reference = sklearn.KMeans(8, init=starts[number].numpy(), n_init=1).fit(points[number, :size].numpy())
        assert float(found.inertia[number]) == pytest.approx(reference.inertia_, rel=0.01)


def test_initialization_is_as_good_as_in_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.cluster")
    points = torch.randn(30, 60, 6, generator=torch.Generator().manual_seed(1))
    found = kmeans(points, torch.full((30,), 60), torch.full((30,), 7))
    references = [sklearn.KMeans(7, n_init=1, random_state=0).fit(some.numpy()).inertia_ for some in points]
    assert float(found.inertia.sum()) < 1.03 * sum(references)


def test_separated_clusters_are_found_and_centroids_are_means() -> None:
    points, labels = blobs(5, 60, 3)
    found = kmeans(points, torch.full((5,), 60), torch.full((5,), 3), iterations=300)
    for one in range(5):
        for cluster in range(3):
            members = found.labels[one] == cluster
            torch.testing.assert_close(found.centres[one, cluster], points[one, members].mean(dim=0))
            assert int(members.sum()) == int(found.counts[one, cluster])
            if found.counts[one].eq(20).all():
                assert len(labels[one, members].unique()) == 1
    assert int(found.counts.eq(20).all(dim=1).sum()) >= 4


def test_sets_are_independent_of_each_other_and_of_padding() -> None:
    points = torch.randn(3, 40, 5, generator=torch.Generator().manual_seed(0))
    sizes, numbers = torch.tensor([40, 17, 9]), torch.tensor([6, 2, 4])
    starts = kmeans_plus_plus(points, sizes, 6)
    together = kmeans(points, sizes, numbers, starts=starts)
    for one, (size, number) in enumerate(zip(sizes.tolist(), numbers.tolist(), strict=True)):
        some = points[one : one + 1, :size]
        alone = kmeans(some, sizes[one : one + 1], numbers[one : one + 1], starts=starts[one : one + 1, :number])
        assert torch.equal(together.labels[one, :size], alone.labels[0])
        torch.testing.assert_close(together.inertia[one], alone.inertia[0])
        assert together.counts[one, number:].eq(0).all()


def test_kmeans_is_accurate_far_from_the_origin() -> None:
    points, _ = blobs(2, 40, 4, distance=3.0)
    sizes, numbers = torch.full((2,), 40), torch.full((2,), 4)
    starts = kmeans_plus_plus(points, sizes, 4)
    near = kmeans(points, sizes, numbers, starts=starts)
    far = kmeans(points + 1000, sizes, numbers, starts=starts + 1000)
    assert torch.equal(near.labels, far.labels)
    torch.testing.assert_close(near.inertia, far.inertia, rtol=1e-3, atol=0)


def test_fewer_distinct_points_than_clusters() -> None:
    points = torch.tensor([[[1.0], [1.0], [5.0], [5.0]]])
    found = kmeans(points, torch.tensor([4]), torch.tensor([3]))
    assert float(found.inertia) == 0
    assert sorted(found.counts[0].tolist()) == [0, 2, 2]


def test_empty_clusters_move_to_the_farthest_points() -> None:
    points = torch.tensor([[[0.0], [1.0], [10.0]]])
    starts = torch.tensor([[[0.0], [100.0], [200.0]]])
    found = kmeans(points, torch.tensor([3]), torch.tensor([3]), starts=starts)
    assert found.counts[0].tolist() == [1, 1, 1]


def test_markov_clustering_finds_separated_clusters() -> None:
    for number in (2, 4):
        points, _ = blobs(3, 40, number, width=32)
        assert markov_clusters(points, torch.full((3,), 40)).tolist() == [number] * 3
    padded = torch.cat([points[:1], torch.zeros(1, 10, 32)], dim=1)
    assert markov_clusters(padded, torch.tensor([40])).tolist() == [4]


@pytest.mark.parametrize(("proposed", "expected"), [(900, 90), (901, 360), (20, 5), (1000, 400)])
def test_number_of_senses_by_the_paper(monkeypatch: pytest.MonkeyPatch, proposed: int, expected: int) -> None:
    monkeypatch.setattr("defemb_callbacks.senses.clustering.markov_clusters", lambda *_: torch.tensor([proposed]))
    assert markov_number(torch.zeros(1, 1, 1), torch.tensor([1000])).tolist() == [expected]
    assert markov_number(torch.zeros(1, 1, 1), torch.tensor([3])).tolist() == [3]


def test_silhouette_finds_the_number_of_clusters() -> None:
    pytest.importorskip("sklearn.metrics")
    for number in (2, 3):
        points, _ = blobs(3, 60, number, width=32)
        assert silhouette_number(points, torch.full((3,), 60), 13).tolist() == [number] * 3
    alike = torch.randn(2, 60, 32, generator=torch.Generator().manual_seed(0))
    assert silhouette_number(alike, torch.full((2,), 60), 13).tolist() == [1, 1]
