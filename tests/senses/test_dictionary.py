"""Sampling, clustering, and sense dictionaries."""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from scipy.stats import chisquare
from torch import Tensor
from transformers import BertForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

import tiny
from defemb_callbacks.reconstruction.backbone import last_states
from defemb_callbacks.senses import SenseConfig, SenseDictionary, build_sense_dictionary
from defemb_callbacks.senses.build import cluster_states, most_senses
from defemb_callbacks.senses.clustering import (
    kmeans,
    kmeans_plus_plus,
    markov_clusters,
    markov_number,
    silhouette_number,
)
from defemb_callbacks.senses.model import check_model, check_tokenizer
from defemb_callbacks.senses.sampling import layer_states, plan_samples, sampled_states, tokenize_texts
from defemb_callbacks.senses.storage import compress, pack, unpack
from defemb_callbacks.vocabulary.tokens import Vocabulary
from launching import exit_together, torchrun
from runs import forward_calls

WORDS = [word for word in tiny.WORDS if "'" not in word][:40]
TEXTS = [" ".join(random.Random(seed).choices(WORDS, k=4 + seed % 9)) for seed in range(160)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny.wordpiece_tokenizer()


@pytest.fixture(scope="module")
def teacher(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return tiny.tiny_bert(tokenizer, BertForSequenceClassification)


@pytest.fixture(scope="module")
def dictionary(teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> SenseDictionary:
    return build_sense_dictionary(teacher, tokenizer, TEXTS, senses=4, samples=50)


def blobs(sets: int, size: int, number: int, width: int = 8, distance: float = 20.0) -> tuple[Tensor, Tensor]:
    """Points of well separated Gaussian clusters, and their labels."""
    generator = torch.Generator().manual_seed(3)
    middles = distance * torch.nn.functional.normalize(torch.randn(sets, number, width, generator=generator), dim=2)
    labels = torch.arange(size).expand(sets, size) % number
    noise = torch.randn(sets, size, width, generator=generator)
    return middles.gather(1, labels[..., None].expand(-1, -1, width)) + noise + 7.0, labels


# Sampling


def test_sample_is_uniform() -> None:
    ids = torch.tensor([1, 0] * 30)
    draws = 2000
    kept = torch.zeros(60)
    pairs = torch.zeros(30, 30)
    for seed in range(draws):
        rows = plan_samples(ids, 2, samples=6, seed=seed).rows
        kept += rows >= 0
        chosen = (rows[1::2] >= 0).float()
        pairs += chosen[:, None] * chosen
    for token in (0, 1):
        assert chisquare(kept[token::2].numpy()).pvalue > 0.001
    # Pairs of occurrences are uniform as well.
    assert chisquare(pairs[tuple(torch.triu_indices(30, 30, offset=1))].numpy()).pvalue > 0.001
    assert kept.sum() == draws * 12


def test_rows_of_a_token_are_in_random_order() -> None:
    first = torch.zeros(20)
    for seed in range(2000):
        first += plan_samples(torch.zeros(20, dtype=torch.int64), 1, samples=10, seed=seed).rows == 0
    assert chisquare(first.numpy()).pvalue > 0.001


def test_sample_size_is_bounded_and_depends_on_the_seed() -> None:
    ids = torch.randint(0, 9, (500,))
    plan, again = plan_samples(ids, 12, samples=30), plan_samples(ids, 12, samples=30)
    assert torch.equal(plan.rows, again.rows)
    assert not torch.equal(plan.rows, plan_samples(ids, 12, samples=30, seed=1).rows)
    assert torch.equal(plan.seen, torch.bincount(ids, minlength=12))
    assert torch.equal(plan.offsets.diff(), plan.seen.clamp(max=30))
    rows = plan.rows[plan.rows >= 0]
    assert torch.equal(rows.sort().values, torch.arange(int(plan.offsets[-1])))
    for token in range(12):
        of_token = plan.rows[(ids == token) & (plan.rows >= 0)]
        assert ((of_token >= plan.offsets[token]) & (of_token < plan.offsets[token + 1])).all()


def test_sampled_states_match_their_positions(teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = TEXTS[:20]
    tokenized = tokenize_texts(tokenizer, texts)
    plan = plan_samples(tokenized.ids, len(tokenizer), samples=5)
    states = sampled_states(teacher, tokenized, plan, batch_size=3)
    position = 0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            of_text = last_states(teacher, ids)[0]
        for state in of_text:
            if (row := int(plan.rows[position])) >= 0:
                torch.testing.assert_close(states[row], state, atol=1e-5, rtol=1e-4)
            position += 1
    assert position == len(plan.rows)


def test_layer_states_match_hidden_states(teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    with torch.no_grad():
        layers = teacher.bert(ids, output_hidden_states=True).hidden_states
        for layer in (0, 1, 2):
            torch.testing.assert_close(layer_states(teacher, ids, layer), layers[layer])
        torch.testing.assert_close(layer_states(teacher, ids), layers[2])


# Clustering


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


# Number of senses


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


@pytest.mark.parametrize("rule", ["fixed", "markov", "silhouette"])
def test_number_of_senses_for_any_number_of_states(rule: Any) -> None:
    points, _ = blobs(1, 60, 3)
    sizes = torch.tensor([40, 0, 3, 12, 5])
    offsets = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
    config = SenseConfig(senses=6, rule=rule)
    new, vectors, counts = cluster_states(points[0], offsets, config)
    number = new.diff()
    assert number[1] == 0
    assert (number <= most_senses(sizes, config)).all()
    assert number[2:].tolist()[::2] == [3, 5]  # raw vectors
    torch.testing.assert_close(vectors[new[2] : new[3]], points[0, 40:43])
    assert torch.equal(torch.tensor([counts[new[i] : new[i + 1]].sum() for i in range(5)]), sizes)
    assert (counts > 0).all()
    if rule == "fixed":
        assert number[[0, 3]].tolist() == [6, 6]
    bare, _, _ = cluster_states(points[0], offsets, SenseConfig(senses=6, rule=rule, keep_rare=False))
    assert bare.diff()[[1, 2, 4]].tolist() == [0, 0, 0]
    assert most_senses(sizes, SenseConfig(senses=6, rule=rule, keep_rare=False))[[1, 2, 4]].tolist() == [0, 0, 0]
    assert torch.equal(bare.diff()[[0, 3]], number[[0, 3]])


# The dictionary


@pytest.mark.parametrize("similarity", ["dot", "cosine", "euclidean"])
def test_lookup_matches_a_loop(dictionary: SenseDictionary, similarity: Any) -> None:
    chooser = SenseDictionary(
        dictionary.offsets, dictionary.vectors, dictionary.counts, dictionary.vocabulary, similarity=similarity
    )
    states = torch.randn(7, 30, 32, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(0, len(dictionary.vocabulary), (7, 30), generator=torch.Generator().manual_seed(1))
    ids[:5] = torch.tensor([index for index, n in enumerate(dictionary.offsets.diff()) if n > 1][:30])
    found = chooser.lookup(states, ids)
    replaced = 0
    for where in itertools.product(range(7), range(30)):
        state, token = states[where], int(ids[where])
        senses = dictionary.vectors[dictionary.offsets[token] : dictionary.offsets[token + 1]]
        if not len(senses):
            assert torch.equal(found[where], state)
            continue
        scores = torch.stack([torch.dot(sense, state) for sense in senses])
        if similarity == "cosine":
            scores = scores / senses.norm(dim=1)
        if similarity == "euclidean":
            scores = -torch.stack([(sense - state).norm() for sense in senses])
        assert torch.equal(found[where], senses[scores.argmax()])
        replaced += 1
    assert replaced >= 150


def test_gradient_of_scores(dictionary: SenseDictionary) -> None:
    ids = torch.tensor([index for index, n in enumerate(dictionary.offsets.diff()) if n == 4][:9])
    states = torch.randn(len(ids), 32, requires_grad=True)
    weights = torch.randn(len(ids), 4)
    (dictionary.scores(states, ids) * weights).sum().backward()
    senses = dictionary.vectors[dictionary.offsets[ids][:, None] + torch.arange(4)]
    torch.testing.assert_close(states.grad, torch.einsum("nkd,nk->nd", senses, weights))


def test_lookup_keeps_dtype_and_is_straight_through(dictionary: SenseDictionary) -> None:
    ids = torch.full((3,), int(dictionary.offsets.diff().argmax()))
    states = torch.randn(3, 32, dtype=torch.bfloat16, requires_grad=True)
    senses = dictionary.lookup(states, ids)
    assert senses.dtype == torch.bfloat16
    senses.sum().backward()
    assert torch.equal(states.grad, torch.ones_like(states))


def test_empty_dictionary_returns_the_states(teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    empty = build_sense_dictionary(teacher, tokenizer, TEXTS[:2], keep_rare=False)
    states, ids = torch.randn(2, 3, 32), torch.ones(2, 3, dtype=torch.int64)
    assert len(empty.vectors) == 0
    assert torch.equal(empty.lookup(states, ids), states)
    assert empty.choose(states[0], ids[0]).tolist() == [-1] * 3


def test_dictionary_is_independent_of_the_batch_size(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dictionary: SenseDictionary
) -> None:
    other = build_sense_dictionary(teacher, tokenizer, TEXTS, senses=4, samples=50, batch_size=3)
    assert torch.equal(other.offsets, dictionary.offsets)
    torch.testing.assert_close(other.vectors, dictionary.vectors, atol=1e-4, rtol=1e-4)


def test_memory_is_logged_before_building(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "defemb_callbacks"):
        small = build_sense_dictionary(teacher, tokenizer, TEXTS, senses=2, samples=3)
    assert small.info["states_kept"] <= 3 * len(tokenizer)
    # Below min_samples, nothing is clustered: there is one sense per state.
    kept = small.info["states_kept"]
    assert f"{kept} states of 42 distinct tokens are kept, for at most {kept} senses (0.00 GB)" in caplog.text
    assert small.counts.sum() == small.info["states_kept"]


@pytest.mark.parametrize("storage", ["float32", "float16", "product"])
def test_save_and_load(dictionary: SenseDictionary, tmp_path: Path, storage: Any) -> None:
    saved = dictionary.compressed(storage)
    saved.save_pretrained(tmp_path)
    loaded = SenseDictionary.from_pretrained(tmp_path)
    for name in ("offsets", "vectors", "counts"):
        assert torch.equal(getattr(loaded, name), getattr(saved, name)), name
    assert loaded.vocabulary == saved.vocabulary
    assert (loaded.similarity, loaded.storage, loaded.info) == ("dot", storage, dictionary.info)
    assert loaded.fingerprint == saved.fingerprint
    size = (tmp_path / "senses.safetensors").stat().st_size
    assert 0 <= size - sum(saved.stored_bytes.values()) < 1000
    assert torch.cosine_similarity(saved.vectors, dictionary.vectors).min() > 0.9


def test_product_quantization_uses_one_byte_for_eight_numbers() -> None:
    vectors = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    quantised = compress(vectors, "product")
    stored = pack(quantised, "product")
    assert stored["codes"].shape == (4000, 2)
    assert torch.equal(unpack(stored), quantised)
    # Lower bound for 256 codewords and 8 independent normals (a rate of 1 bit each): a distortion of 2^-2.
    assert 0.25 < float((vectors - quantised).square().mean()) < 0.45


def test_dictionary_stays_in_float32(dictionary: SenseDictionary) -> None:
    copy = dictionary.compressed("float32").half()
    assert copy.vectors.dtype == torch.float32
    assert torch.equal(copy.vectors, dictionary.vectors)
    assert copy.offsets.dtype == torch.int64


def test_damaged_or_missing_files(dictionary: SenseDictionary, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="contains no sense dictionary"):
        SenseDictionary.from_pretrained(tmp_path)
    dictionary.save_pretrained(tmp_path)
    path = tmp_path / "senses.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"is invalid: The checksum of senses\.safetensors does not match"):
        SenseDictionary.from_pretrained(tmp_path)


def test_hub_upload(dictionary: SenseDictionary, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, Any] = {}

    def upload_folder(self: Any, *, folder_path: str, repo_id: str, **kwargs: Any) -> str:
        uploaded.update({path.name: path.stat().st_size for path in Path(folder_path).iterdir()})
        return f"commit of {repo_id}"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi.upload_folder", upload_folder)
    monkeypatch.setattr(
        "huggingface_hub.hub_mixin.HfApi.create_repo", lambda self, repo_id, **_: type("Repo", (), {"repo_id": repo_id})
    )
    assert dictionary.push_to_hub("user/senses") == "commit of user/senses"
    assert uploaded.keys() == {"senses.safetensors", "vocabulary.json", "config.json", "README.md"}


@pytest.mark.slow
def test_two_processes_build_the_dictionary_of_one(tmp_path: Path) -> None:
    torchrun(__file__, str(tmp_path))
    one, two = (SenseDictionary.from_pretrained(tmp_path / str(rank)) for rank in (0, 1))
    tokenizer = tiny.wordpiece_tokenizer()
    alone = build_sense_dictionary(tiny.tiny_bert(tokenizer), tokenizer, TEXTS, senses=4, samples=50)
    assert one.fingerprint == two.fingerprint
    assert torch.equal(one.offsets, alone.offsets)
    torch.testing.assert_close(one.vectors, alone.vectors, atol=1e-4, rtol=1e-4)


def worker(folder: Path) -> None:
    """Code of each process."""
    rank = PartialState(cpu=True).process_index
    tokenizer = tiny.wordpiece_tokenizer()
    built = build_sense_dictionary(tiny.tiny_bert(tokenizer), tokenizer, TEXTS, senses=4, samples=50)
    assert torch.distributed.get_world_size() == 2
    built.save_pretrained(folder / str(rank))
    exit_together(folder)


# Errors


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="`samples` must be at least `senses`=30, got 20"):
        SenseConfig(senses=30, samples=20)
    assert SenseConfig(rule="markov", samples=10).samples == 10  # `senses` is ignored
    with pytest.raises(ValueError, match="`min_samples` must be at least 1, got 0"):
        SenseConfig(min_samples=0)
    with pytest.raises(ValueError, match="`rule` must be one of fixed, markov, silhouette, got 'best'"):
        SenseConfig(rule="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`similarity` must be one of dot, cosine, euclidean, got 'l2'"):
        SenseConfig(similarity="l2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`name` must be one of deberta-v3, llama-3-8b, got 'bert'"):
        SenseConfig.paper("bert")


def test_invalid_texts(teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="`texts` must contain at least one token, got 0 texts"):
        build_sense_dictionary(teacher, tokenizer, [])
    with pytest.raises(TypeError, match="`texts` must be a list of strings or a column of a Dataset, got str"):
        build_sense_dictionary(teacher, tokenizer, "one text")
    with pytest.raises(TypeError, match=r"got generator\. Put .* a stream into a Dataset"):
        build_sense_dictionary(teacher, tokenizer, (text for text in TEXTS))  # type: ignore[arg-type]


def test_silhouette_without_scikit_learn(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with (
        forward_calls() as calls,
        pytest.raises(ImportError, match=r'requires scikit-learn.*pip install "defemb-callbacks\[senses\]"'),
    ):
        build_sense_dictionary(teacher, tokenizer, TEXTS, rule="silhouette")
    assert not calls


def test_token_ids_out_of_range() -> None:
    with pytest.raises(ValueError, match="Token id 7 is out of range: the model has 5 tokens"):
        plan_samples(torch.tensor([1, 7]), 5, samples=1)


def test_dictionary_of_another_model_or_tokenizer(
    dictionary: SenseDictionary, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    check_model(dictionary, teacher)
    other = tiny.tiny_bert(tokenizer, hidden_dropout_prob=0.0)
    check_model(dictionary, other)  # the same weights
    with torch.no_grad():
        other.encoder.layer[0].output.dense.bias[0] += 1
    with pytest.raises(ValueError, match="was built from other weights"):
        check_model(dictionary, other)
    check_model(dictionary, other, force=True)
    with pytest.raises(ValueError, match="The senses have width 32, but the model's hidden states have width 16"):
        check_model(dictionary, tiny.tiny_bert(tokenizer, hidden_size=16))
    small = tiny.tiny_bert(tokenizer, vocab_size=500)
    with pytest.raises(ValueError, match="The dictionary has 476 tokens, but the model has 500"):
        check_model(dictionary, small)
    with pytest.raises(ValueError, match="built with another tokenizer"):
        check_tokenizer(dictionary, tiny.byte_bpe_tokenizer())
    with pytest.raises(ValueError, match=r"`states` must be \(…, 32\) and `token_ids` \(…\), got \(2, 16\) and \(2,\)"):
        dictionary.lookup(torch.zeros(2, 16), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": torch.zeros(2, 3, dtype=torch.float16)}, r"`vectors` must be \(senses, d\) float32"),
        ({"offsets": torch.tensor([0, 2])}, r"`offsets` must be \(3,\) int64"),
        ({"offsets": torch.tensor([0, 1, 1])}, "`offsets` must increase from 0 to the number of senses, 2"),
        ({"counts": torch.ones(3, dtype=torch.int64)}, r"`counts` must be \(2,\) int64"),
        ({"vectors": torch.full((2, 3), torch.nan)}, "`vectors` contains NaN or infinity"),
    ],
)
def test_invalid_tensors(change: dict[str, Tensor], message: str) -> None:
    tensors = {"offsets": torch.tensor([0, 0, 2]), "vectors": torch.zeros(2, 3), "counts": torch.ones(2).long()}
    vocabulary = Vocabulary(("a", "b"), ("a", "b"), (None, None), uncased=True)
    with pytest.raises(ValueError, match=message):
        SenseDictionary(**tensors | change, vocabulary=vocabulary)  # type: ignore[arg-type]


def test_invalid_storage() -> None:
    with pytest.raises(ValueError, match="`storage` must be one of float32, float16, product, got 'int8'"):
        compress(torch.zeros(1, 8), "int8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="requires a width that is a multiple of 8, got 12"):
        compress(torch.zeros(1, 12), "product")
    with pytest.raises(ValueError, match=r'takes 300 values, more than 256.*dictionary\.compressed\("product"\)'):
        pack(torch.arange(2400.0).view(300, 8), "product")


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
