"""Another encoder reads the definitions: which one, what is read, and what the rows depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor
from transformers import (
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    ViltConfig,
    ViltModel,
)

from defemb_callbacks import (
    DefinitionEMBCallback,
    DefinitionEMBConfig,
    build_definition_embeddings,
    define_new_tokens,
    with_definition_head,
)
from defemb_callbacks.definitions import load_definitions
from defemb_callbacks.embeddings import compute as module
from defemb_callbacks.reconstruction import DefinitionReader, cross_fitted_rows, definition_texts, word_features
from defemb_callbacks.vocabulary.lookup import definitions_of_tokens, lemma_groups
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from defemb_callbacks.weights.rows import read_table
from tiny import (
    byte_bpe_tokenizer,
    tiny_bert,
    tiny_dataset,
    tiny_glossary,
    tiny_model,
    training_args,
    wordpiece_tokenizer,
)

GLOSSES = tiny_glossary()
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return byte_bpe_tokenizer()


@pytest.fixture
def model(tokenizer) -> PreTrainedModel:
    return tiny_model(GPT2LMHeadModel, tokenizer)


@pytest.fixture(scope="module")
def pair() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    wordpieces = wordpiece_tokenizer()
    return tiny_bert(wordpieces, hidden_size=16), wordpieces


@pytest.fixture(scope="module")
def folder(pair, tmp_path_factory) -> Path:
    to = tmp_path_factory.mktemp("reader")
    for part in pair:
        part.save_pretrained(to)
    return to


def vilt(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model that cannot read text without an image."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = ViltConfig(vocab_size=len(tokenizer), **sizes, image_size=32, patch_size=8, initializer_range=0.2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ViltModel(config).eval()


def settings(folder: Path, **overrides: Any) -> DefinitionEMBConfig:
    return DefinitionEMBConfig(**{"precision": "float32", "cache_dir": str(folder)} | overrides)


def expected_features(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pair: Any, words: list[str], found: list[Any]
) -> Tensor:
    """Layers and bag of the reader, and the bag of the model's own table."""
    read = word_features(*pair, definition_texts(words, found, pair[1], 64), ["layers", "bag"], precision="float32")
    own = word_features(model, tokenizer, definition_texts(words, found, tokenizer, 64), ["bag"])
    return torch.cat([read, own], dim=1)


def test_rows_are_mapped_from_the_readers_features_and_the_models_bag(model, tokenizer, pair, tmp_path):
    config = settings(tmp_path, reader=pair, features=["layers", "bag"])
    built = build_definition_embeddings(model, tokenizer, GLOSSES, config)
    vocabulary = read_vocabulary(tokenizer, len(tokenizer))
    lexicon = load_definitions(GLOSSES)
    found = definitions_of_tokens(vocabulary, lexicon, 8)
    words = [vocabulary.words[index] for index in found]
    features = expected_features(model, tokenizer, pair, words, list(found.values()))
    old = read_table(model)[torch.tensor(list(found))]
    fitted = cross_fitted_rows(features, old, groups=lemma_groups(list(found.values())))
    torch.testing.assert_close(built.rows, fitted.rows, rtol=1e-4, atol=1e-5)
    assert built.info["features"] == ["layers", "bag"]
    assert built.info["definitions_per_token"] == 8
    assert built.info["reader"] == "BertModel"


def test_the_model_itself_is_not_run(model, tokenizer, pair, tmp_path):
    def run(*_: Any) -> None:
        raise AssertionError("The model was run.")

    model.transformer.register_forward_pre_hook(run)
    built = build_definition_embeddings(model, tokenizer, GLOSSES, settings(tmp_path, reader=pair))
    assert len(built.ids) >= len(GLOSSES)


def test_a_folder_a_sentence_transformer_and_a_pair_are_read_alike(model, tokenizer, pair, folder, tmp_path):
    layers = Transformer(str(folder))
    sentences = SentenceTransformer(modules=[layers, Pooling(16)], device="cpu")
    rows = [
        build_definition_embeddings(model, tokenizer, GLOSSES, settings(tmp_path / str(number), reader=reader)).rows
        for number, reader in enumerate((pair, str(folder), folder, sentences))
    ]
    assert all(torch.equal(rows[0], other) for other in rows[1:])
    plain = build_definition_embeddings(model, tokenizer, GLOSSES, settings(tmp_path / "plain"))
    assert not torch.allclose(rows[0], plain.rows)


def test_the_cache_depends_on_the_readers_weights_and_tokenizer(model, tokenizer, pair, folder, tmp_path, monkeypatch):
    reads: list[None] = []
    encode = module.word_features

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        reads.append(None)
        return encode(*args, **kwargs)

    monkeypatch.setattr(module, "word_features", counted)

    def build(reader: Any, model: PreTrainedModel = model) -> bool:
        """Whether definitions are read."""
        before = len(reads)
        build_definition_embeddings(model, tokenizer, GLOSSES, settings(tmp_path, reader=reader))
        return len(reads) > before

    assert build(pair)
    assert not build(pair)
    assert not build(str(folder))  # the same weights and tokenizer
    other = tiny_bert(pair[1], hidden_size=16)
    with torch.no_grad():
        other.encoder.layer[0].output.dense.weight[0, 0] += 1
    assert build((other, pair[1]))
    assert build((pair[0], wordpiece_tokenizer(mask=False)))
    assert build(None)
    # Of the model itself, only the table matters.
    changed = tiny_model(GPT2LMHeadModel, tokenizer)
    with torch.no_grad():
        changed.transformer.h[0].mlp.c_fc.weight[0, 0] += 1
    assert not build(pair, changed)
    with torch.no_grad():
        changed.transformer.wte.weight[0, 0] += 1
    assert build(pair, changed)


def test_new_tokens_are_read_by_the_reader_too(model, tokenizer, pair, tmp_path):
    terms = {"lynx": "a wild cat with long ears", "tokamak": "a machine for hot gas"}
    own = byte_bpe_tokenizer()
    report = define_new_tokens(model, own, terms, GLOSSES, settings(tmp_path, reader=pair))
    assert all(term.is_new for term in report.terms)
    rows = read_table(model)[own.convert_tokens_to_ids(list(terms))]
    assert torch.isfinite(rows).all()
    assert torch.cosine_similarity(rows[0], rows[1], dim=0) < 0.999


def test_a_callback_takes_a_reader(model, tokenizer, folder, tmp_path):
    callback = DefinitionEMBCallback(GLOSSES, reader=str(folder), cache_dir=str(tmp_path), plots=False, blend=0.5)
    data = tiny_dataset(tokenizer, 8)
    data = data.remove_columns("labels").add_column("labels", data["input_ids"])
    arguments = training_args(tmp_path, max_steps=1)
    Trainer(model, arguments, train_dataset=data, processing_class=tokenizer, callbacks=[callback]).train()
    assert callback.report is not None
    assert callback.config.to_dict()["reader"] == str(folder)


def test_a_model_that_cannot_read_has_the_bag_and_warns_once(tokenizer, tmp_path, caplog):
    wordpieces = wordpiece_tokenizer()
    model = vilt(wordpieces)
    built = build_definition_embeddings(model, wordpieces, GLOSSES, settings(tmp_path))
    assert caplog.text.count("ViltModel cannot read text by itself") == 1
    assert "mean of their token embeddings" in caplog.text
    assert built.info["features"] == ["bag"]
    assert len({tuple(row) for row in built.rows.tolist()}) > 0.9 * len(GLOSSES)


def test_a_model_that_cannot_read_may_have_a_reader(pair, tmp_path, caplog):
    wordpieces = wordpiece_tokenizer()
    built = build_definition_embeddings(vilt(wordpieces), wordpieces, GLOSSES, settings(tmp_path, reader=pair))
    assert built.info["features"] in (["layers", "bag"], ["mean", "bag"])
    assert "cannot read" not in caplog.text


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"method": "learned"}, r"ViltModel cannot read text by itself \(.*pixel_values.*\). Use `method='ridge'`"),
        ({"features": ["bag", "mean"]}, r"so it has no feature 'mean'. Use `features=\['bag'\]`"),
    ],
)
def test_settings_that_need_states_are_refused_for_a_model_that_cannot_read(overrides, match, tmp_path):
    wordpieces = wordpiece_tokenizer()
    with pytest.raises(ValueError, match=match):
        build_definition_embeddings(vilt(wordpieces), wordpieces, GLOSSES, settings(tmp_path, **overrides))
    assert not list(tmp_path.iterdir())


def test_a_reader_must_be_an_encoder_of_text(tmp_path):
    with pytest.raises(TypeError, match=r"`reader` must be a name, a folder, .* got BertModel"):
        DefinitionReader.of(tiny_bert(wordpiece_tokenizer()), CPU)
    wordpieces = wordpiece_tokenizer()
    with pytest.raises(ValueError, match="The reader ViltModel cannot read text by itself"):
        DefinitionReader.of((vilt(wordpieces), wordpieces), CPU)
    with pytest.raises(OSError, match="nowhere"):
        DefinitionReader.of(tmp_path / "nowhere", CPU)


def test_an_opened_reader_is_kept(pair):
    reader = DefinitionReader.of(pair, CPU)
    assert DefinitionReader.of(reader, CPU) is reader
    headed = with_definition_head(pair[0])
    assert DefinitionReader.of((headed, pair[1]), CPU).model is headed
