"""build_definition_embeddings: tokens, rows, errors and the cache."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertForMaskedLM, BertForSequenceClassification, BertModel, GPT2Model, PreTrainedModel

from defemb_callbacks import Definition, DefinitionEMBConfig, Lexicon, build_definition_embeddings
from defemb_callbacks.definitions import Relation, load_definitions
from defemb_callbacks.embeddings import compute as module
from defemb_callbacks.metrics.pairs import related_tokens
from defemb_callbacks.reconstruction import cross_fitted_rows, definition_texts, feature_choice, word_features
from defemb_callbacks.reconstruction.model_settings import ENCODER_FEATURES
from defemb_callbacks.vocabulary.lookup import definitions_of_tokens, lemma_groups
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from defemb_callbacks.weights.rows import read_table
from tiny import (
    byte_bpe_tokenizer,
    tiny_bert,
    tiny_glossary,
    tiny_model,
    tiny_roberta,
    unigram_tokenizer,
    wordpiece_tokenizer,
)

GLOSSES = tiny_glossary()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return wordpiece_tokenizer()


@pytest.fixture
def model(tokenizer: Any) -> PreTrainedModel:
    return tiny_bert(tokenizer)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that definitions are encoded."""
    calls: list[int] = []
    encode = module.word_features

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return encode(*args, **kwargs)

    monkeypatch.setattr(module, "word_features", counted)
    return calls


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "embeddings").iterdir() if path.is_dir())


# Building


@pytest.mark.parametrize(
    ("make_tokenizer", "make_model", "mark"),
    [
        (wordpiece_tokenizer, tiny_bert, ""),
        (byte_bpe_tokenizer, tiny_roberta, "Ġ"),
        (unigram_tokenizer, tiny_roberta, "▁"),
    ],
)
def test_the_tokens_are_the_words_of_the_dictionary(make_tokenizer, make_model, mark) -> None:
    tokenizer = make_tokenizer()
    built = build_definition_embeddings(make_model(tokenizer), tokenizer, tiny_glossary())
    found = set(tokenizer.convert_ids_to_tokens(built.ids.tolist()))
    assert {f"{mark}{word}" for word in tiny_glossary()} <= found
    # A cased vocabulary has some of them capitalised as well.
    assert {token.removeprefix(mark).lower() for token in found} == set(tiny_glossary())
    assert torch.equal(built.ids, built.ids.sort().values)


def test_the_rows_are_cross_fitted_from_the_features(model, tokenizer) -> None:
    config = DefinitionEMBConfig(features=["mean", "first"], precision="float32")
    built = build_definition_embeddings(model, tokenizer, tiny_glossary(), config)
    vocabulary = read_vocabulary(tokenizer)
    found = definitions_of_tokens(vocabulary, load_definitions(tiny_glossary()), 8)
    texts = definition_texts([vocabulary.words[index] for index in found], list(found.values()), tokenizer, 64)
    features = word_features(model, tokenizer, texts, ["mean", "first"], precision="float32")
    groups = lemma_groups(list(found.values()))
    expected = cross_fitted_rows(features, read_table(model)[list(found)], groups=groups)
    torch.testing.assert_close(built.rows, expected.rows)
    assert built.info["ridge_strength"] == expected.strength
    assert built.info["definitions_read"] == len(tiny_glossary())


@pytest.mark.parametrize(
    ("make", "candidates", "prompt", "most"),
    [
        (lambda t: tiny_bert(t, num_hidden_layers=6), [["layers", "bag"], ["mean", "bag"]], "mask", 8),
        (
            lambda t: tiny_model(GPT2Model, t, n_layer=6),
            [["last", "middle", "bag"], ["last", "layers", "bag"], ["layers", "bag"], ["last", "bag"]],
            "synonyms",
            2,
        ),
    ],
)
def test_the_features_with_the_highest_held_out_r_squared_are_chosen(
    make, candidates, prompt, most, tokenizer, builds
) -> None:
    model = make(tokenizer)
    glossary = {word: [gloss, *(f"sense {rank} of it" for rank in range(2, 11))] for word, gloss in GLOSSES.items()}
    built = build_definition_embeddings(model, tokenizer, glossary, DefinitionEMBConfig(precision="float32"))
    assert (built.info["prompt"], built.info["definitions_per_token"]) == (prompt, most)
    assert built.info["definitions_read"] == most * len(built.ids)
    explicit = [
        build_definition_embeddings(
            model, tokenizer, glossary, DefinitionEMBConfig(features=names, precision="float32")
        )
        for names in candidates
    ]
    best = max(explicit, key=lambda found: found.info["r_squared"])
    assert built.info["features"] == best.info["features"]
    torch.testing.assert_close(built.rows, best.rows)
    again = build_definition_embeddings(model, tokenizer, glossary, DefinitionEMBConfig(precision="float32"))
    assert torch.equal(again.rows, built.rows)
    assert len(builds) == 1 + len(candidates)

    vocabulary = read_vocabulary(tokenizer)
    found = definitions_of_tokens(vocabulary, load_definitions(glossary), most)
    words = [vocabulary.words[index] for index in found]
    texts = definition_texts(words, list(found.values()), tokenizer, 64, prompt)
    encoded = word_features(model, tokenizer, texts, built.info["features"], precision="float32")
    groups = lemma_groups(list(found.values()))
    expected = cross_fitted_rows(encoded, read_table(model)[list(found)], groups=groups)
    torch.testing.assert_close(built.rows, expected.rows)


def test_the_model_is_unchanged(model, tokenizer) -> None:
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_json_string()
    build_definition_embeddings(model, tokenizer, tiny_glossary())
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert all(module.training for module in model.modules())
    assert model.config.to_json_string() == config


def test_the_build_is_deterministic(model, tokenizer, tmp_path) -> None:
    rows = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = DefinitionEMBConfig(cache_dir=str(tmp_path / str(seed)))
        state = torch.random.get_rng_state()
        rows.append(build_definition_embeddings(model, tokenizer, tiny_glossary(), config).rows)
        assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(*rows)


def test_a_glossary_may_define_literal_tokens(model, tokenizer) -> None:
    glossary = tiny_glossary() | {"##ing": "makes a noun of a verb", "1990": "a year", "[CLS]": "never in a text"}
    built = build_definition_embeddings(model, tokenizer, glossary)
    found = tokenizer.convert_ids_to_tokens(built.ids.tolist())
    assert set(found) == {*tiny_glossary(), "##ing", "1990"}
    # Word pieces are not looked up in dictionaries of words.
    words = Lexicon.from_definitions([Definition(*entry) for entry in glossary.items()], name="words")
    built = build_definition_embeddings(model, tokenizer, words)
    assert set(tokenizer.convert_ids_to_tokens(built.ids.tolist())) == set(tiny_glossary())


def test_synonyms_of_a_glossary_change_the_build(model, tokenizer) -> None:
    cat = tiny_glossary()["cat"]
    glossaries = [tiny_glossary() | {"cat": value} for value in (cat, {"definition": cat, "synonyms": ["tiger"]})]
    plain, rich = (build_definition_embeddings(model, tokenizer, glossary) for glossary in glossaries)
    assert plain.info["definitions_read"] == rich.info["definitions_read"]
    assert not torch.allclose(plain.rows, rich.rows)


def _features_of(word: str, sources: Any, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    taken: list[Tensor] = []

    def look(features: Tensor, old: Tensor, **settings: Any) -> Any:
        taken.append(features)
        return cross_fitted_rows(features, old, **settings)

    monkeypatch.setattr(feature_choice, "cross_fitted_rows", look)
    built = build_definition_embeddings(model, tokenizer, sources, DefinitionEMBConfig(precision="float32"))
    row = built.ids.tolist().index(tokenizer.convert_tokens_to_ids(word))
    return taken[0][row]


def test_merged_dictionaries_have_equal_weight(model, tokenizer, monkeypatch) -> None:
    """The weight does not depend on the number of definitions."""
    one = {"dog": "an animal that barks", "cat": "an animal of the house"}
    two = {"dog": ["a friend of man", "a word for a bad man", "a thing of iron"], "cat": "a small lion"}
    first, second, merged = (
        _features_of("dog", sources, model, tokenizer, monkeypatch) for sources in (one, two, [one, two])
    )
    assert not torch.allclose(first, second)
    torch.testing.assert_close(merged, (first + second) / 2)


def test_the_map_is_fitted_on_the_models_device_or_on_the_cpu_if_that_is_full(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = build_definition_embeddings(
        model, tokenizer, tiny_glossary(), DefinitionEMBConfig(cache_dir=str(tmp_path / "expected"))
    )
    cuda, devices = torch.device("cuda", 1), []

    def full(features: Tensor, targets: Tensor, *, device: torch.device, **settings: Any) -> Any:
        devices.append(device)
        if device == cuda:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return cross_fitted_rows(features, targets, device=device, **settings)

    encode = module.word_features

    def encoded(*args: Any, **settings: Any) -> Tensor:
        features = encode(*args, **settings)
        # From here on, the model says that it is on a GPU.
        monkeypatch.setattr(type(model), "device", cuda)
        return features

    monkeypatch.setattr(feature_choice, "cross_fitted_rows", full)
    monkeypatch.setattr(module, "word_features", encoded)
    with caplog.at_level(logging.INFO, "defemb_callbacks"):
        built = build_definition_embeddings(
            model, tokenizer, tiny_glossary(), DefinitionEMBConfig(cache_dir=str(tmp_path / "full"))
        )
    assert devices == [cuda, *[torch.device("cpu")] * len(ENCODER_FEATURES)]
    assert torch.equal(built.rows, expected.rows)
    assert "does not fit into the memory of cuda:1; it is computed on the CPU" in caplog.text


def test_related_tokens_are_those_of_the_dictionary(tokenizer) -> None:
    words = ("dog", "animal", "cat", "violin")
    lexicon = Lexicon.from_definitions(
        [Definition(word, f"gloss of {word}") for word in (*words, "canine")],
        name="related",
        relations=[Relation("dog", "animal", "hypernym"), Relation("dog", "canine", "hypernym")],
    )
    pairs = related_tokens(read_vocabulary(tokenizer), lexicon)
    assert [tokenizer.convert_ids_to_tokens(pair) for pair in pairs.tolist()] == [["dog", "animal"]]
    nothing = related_tokens(read_vocabulary(tokenizer), load_definitions({"dog": "an animal"}))
    assert nothing.shape == (0, 2)
    assert nothing.dtype == torch.int64


# Errors


def test_a_dictionary_without_any_token_raises(model, tokenizer) -> None:
    with pytest.raises(ValueError, match=r"None of the 476 tokens has a definition in glossary \(1 words\)"):
        build_definition_embeddings(model, tokenizer, {"Donaudampfschiff": "ein Schiff"})


def test_a_single_token_raises(model, tokenizer) -> None:
    with pytest.raises(ValueError, match="at least 2 tokens with definitions, got 1"):
        build_definition_embeddings(model, tokenizer, {"dog": "an animal"})


def test_a_tokenizer_larger_than_the_table_raises(tokenizer) -> None:
    with pytest.raises(ValueError, match="ids up to 475, but the embedding table has only 400 rows"):
        build_definition_embeddings(tiny_bert(tokenizer, vocab_size=400), tokenizer, tiny_glossary())


def test_a_missing_dictionary_raises(model, tokenizer) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.tsv"):
        build_definition_embeddings(model, tokenizer, "missing.tsv")


# Cache


def test_the_second_call_uses_the_cache(model, tokenizer, builds) -> None:
    first = build_definition_embeddings(model, tokenizer, tiny_glossary())
    second = build_definition_embeddings(model, tokenizer, tiny_glossary())
    assert len(builds) == 1
    for name in ("ids", "rows", "pairs"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert first.vocabulary == second.vocabulary
    assert first.info == second.info


def test_the_config_sets_the_cache_folder(model, tokenizer, own_cache, tmp_path) -> None:
    config = DefinitionEMBConfig(cache_dir=str(tmp_path / "here"))
    build_definition_embeddings(model, tokenizer, tiny_glossary(), config)
    assert len(entries(tmp_path / "here")) == 1
    assert not (own_cache / "embeddings").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"features": ["bag"]},
        {"definitions_per_token": 1},
        {"max_length": 8},
        {"precision": "float32"},
    ],
)
def test_other_build_settings_are_built_again(model, tokenizer, builds, settings) -> None:
    build_definition_embeddings(model, tokenizer, tiny_glossary())
    build_definition_embeddings(model, tokenizer, tiny_glossary(), DefinitionEMBConfig(**settings))
    assert len(builds) == 2


def test_settings_of_the_writing_use_the_cache(model, tokenizer, builds) -> None:
    build_definition_embeddings(model, tokenizer, tiny_glossary())
    config = DefinitionEMBConfig(blend=0.1, strategy="replace", alpha=0.5, monitor_steps=3, plots=False, batch_size=7)
    build_definition_embeddings(model, tokenizer, tiny_glossary(), config)
    assert len(builds) == 1


@pytest.mark.parametrize("part", ["embeddings.word_embeddings.weight", "encoder.layer.1.output.dense.bias"])
def test_other_weights_are_built_again(model, tokenizer, builds, part) -> None:
    build_definition_embeddings(model, tokenizer, tiny_glossary())
    with torch.no_grad():
        model.get_parameter(part).view(-1)[-1] += 1e-6
    build_definition_embeddings(model, tokenizer, tiny_glossary())
    assert len(builds) == 2


@pytest.mark.parametrize("settings", [{"num_attention_heads": 2}, {"hidden_act": "relu"}, {"layer_norm_eps": 1e-3}])
def test_the_same_weights_in_another_architecture_are_built_again(model, tokenizer, builds, settings) -> None:
    first = build_definition_embeddings(model, tokenizer, tiny_glossary())
    other = tiny_bert(tokenizer, type(model), **settings)
    other.load_state_dict(model.state_dict())
    second = build_definition_embeddings(other, tokenizer, tiny_glossary())
    assert len(builds) == 2
    assert not torch.equal(first.rows, second.rows)


def test_settings_of_the_training_use_the_cache(model, tokenizer, builds) -> None:
    build_definition_embeddings(model, tokenizer, tiny_glossary())
    model.config.use_cache = False
    model.config.hidden_dropout_prob = 0.3
    model.config.num_labels = 7
    build_definition_embeddings(model, tokenizer, tiny_glossary())
    assert len(builds) == 1


def test_tables_that_the_model_caches_while_it_is_read_can_be_trained_with(tokenizer) -> None:
    """As positions that are computed in the first forward pass."""

    class Caching(BertModel):
        scale: Any = None

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            if self.scale is None:
                self.scale = torch.linspace(0.5, 1.5, output.last_hidden_state.shape[-1])
            output.last_hidden_state = output.last_hidden_state * self.scale
            return output

    model = tiny_bert(tokenizer, Caching)
    build_definition_embeddings(model, tokenizer, {"dog": "an animal", "cat": "a small animal"})
    assert model.scale is not None
    model(torch.tensor([[6, 7, 8]])).last_hidden_state.sum().backward()
    assert model.get_input_embeddings().weight.grad is not None


def test_heads_and_poolers_are_ignored(tokenizer, builds) -> None:
    """They are initialized for each task, and definitions do not pass through them."""
    for seed, model_class in enumerate((BertForSequenceClassification, BertForSequenceClassification, BertForMaskedLM)):
        model = tiny_bert(tokenizer, model_class)
        source = tiny_bert(tokenizer)
        model.bert.embeddings.load_state_dict(source.embeddings.state_dict())
        model.bert.encoder.load_state_dict(source.encoder.state_dict())
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "pooler" in name or "classifier" in name:
                torch.nn.init.normal_(parameter)
        build_definition_embeddings(model, tokenizer, tiny_glossary())
    assert len(builds) == 1


def test_another_tokenizer_is_built_again(model, tokenizer, builds) -> None:
    build_definition_embeddings(model, tokenizer, tiny_glossary())
    cased = wordpiece_tokenizer()
    cased.backend_tokenizer.normalizer = None
    build_definition_embeddings(model, cased, tiny_glossary())
    assert len(builds) == 2


def test_padding_set_by_an_earlier_call_is_ignored(model, builds) -> None:
    tokenizer = wordpiece_tokenizer()
    build_definition_embeddings(model, tokenizer, tiny_glossary())
    tokenizer(["the dog", "a"], padding="max_length", truncation=True, max_length=5)
    build_definition_embeddings(model, tokenizer, tiny_glossary())
    assert len(builds) == 1


@pytest.mark.parametrize(
    "definitions",
    [
        tiny_glossary() | {"dog": "another animal"},
        tiny_glossary() | {"lamp": "a thing that gives light"},
        [tiny_glossary(), {"dog": "another animal"}],
    ],
)
def test_another_dictionary_is_built_again(model, tokenizer, builds, definitions) -> None:
    build_definition_embeddings(model, tokenizer, tiny_glossary())
    build_definition_embeddings(model, tokenizer, definitions)
    assert len(builds) == 2


@pytest.mark.parametrize("file", ["definition_embeddings.safetensors", "definition_embeddings.json"])
def test_a_damaged_entry_is_built_again_with_a_warning(model, tokenizer, builds, own_cache, caplog, file) -> None:
    first = build_definition_embeddings(model, tokenizer, tiny_glossary())
    [entry] = entries(own_cache)
    data = bytearray((entry / file).read_bytes())
    data[len(data) // 2] ^= 1
    (entry / file).write_bytes(data)
    with caplog.at_level(logging.WARNING, "defemb_callbacks"):
        second = build_definition_embeddings(model, tokenizer, tiny_glossary())
    assert len(builds) == 2
    assert "is damaged" in caplog.text
    assert torch.equal(first.rows, second.rows)
    build_definition_embeddings(model, tokenizer, tiny_glossary())
    assert len(builds) == 2


def test_definitions_are_truncated_to_the_models_maximum_length(model: PreTrainedModel, tokenizer: Any) -> None:
    long = dict.fromkeys(("house", "water", "city"), "a cat and a dog and " * 60)
    most = tokenizer.model_max_length
    short = build_definition_embeddings(model, tokenizer, long, DefinitionEMBConfig(max_length=most))
    longer = build_definition_embeddings(model, tokenizer, long, DefinitionEMBConfig(max_length=5000))
    assert longer.info["tokens_encoded"] == short.info["tokens_encoded"] == most  # one text, which all three share
    assert torch.equal(longer.rows, short.rows)
