"""Features equal a slow loop over single texts for any batching, and the model is not changed."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    FunnelBaseModel,
    FunnelConfig,
    GPT2Model,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaForMaskedLM,
    T5Config,
    T5Model,
)

from defemb_callbacks import Definition, with_definition_head
from defemb_callbacks.reconstruction import features
from defemb_callbacks.reconstruction.batching import equal_length_batches
from defemb_callbacks.reconstruction.features import word_features
from defemb_callbacks.reconstruction.prompts import DefinitionTexts, definition_texts, mask_text, sense_weights
from tiny import (
    byte_bpe_tokenizer,
    gemma_tokenizer,
    tiny_bert,
    tiny_glossary,
    tiny_model,
    tiny_roberta,
    unigram_tokenizer,
    wordpiece_tokenizer,
)

FEATURES = ("mean", "first", "mask", "bag")
LAYERS = 7
NEW_FEATURES = ("layers", "middle", "last")


def tiny_t5(tokenizer: PreTrainedTokenizerBase, layers: int = 2) -> PreTrainedModel:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": layers, "num_heads": 4}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    return T5Model(T5Config(vocab_size=len(tokenizer), **sizes, **ids)).eval()


FAMILIES = {
    "bert": (wordpiece_tokenizer, tiny_bert),
    "roberta": (byte_bpe_tokenizer, tiny_roberta),
    "t5": (unigram_tokenizer, tiny_t5),
}


def dictionary() -> tuple[list[str], list[list[Definition]]]:
    """Words with one to three definitions from one or two dictionaries, and two words that share a definition."""
    glosses = tiny_glossary()
    words = list(glosses)
    found = [[Definition(word, gloss, source="a")] for word, gloss in glosses.items()]
    for position in range(0, len(words), 3):
        found[position].append(Definition(words[position], "a part of the house", rank=2, source="a"))
    for position in range(0, len(words), 4):
        found[position].append(Definition(words[position], glosses[words[position - 1]], source="b"))
    # The prompts of these two are the same.
    words += ["wolves", "wolfish"]
    found += [[Definition("wolf", "a wild animal", source="a")]] * 2
    return words, found


def texts_for(tokenizer: PreTrainedTokenizerBase, max_length: int = 64) -> DefinitionTexts:
    return definition_texts(*dictionary(), tokenizer, max_length)


def slow_features(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: DefinitionTexts) -> Tensor:
    """Encode each text alone, and compute each feature and each mean by its definition."""
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model
    table = model.get_input_embeddings().weight.detach()
    result = [0.0] * (int(texts.word.max()) + 1)
    for text, word, weight in zip(texts.text.tolist(), texts.word.tolist(), texts.weight.tolist(), strict=True):
        ids = texts.input_ids[text]
        with torch.no_grad():
            states = encoder(input_ids=torch.tensor([ids])).last_hidden_state[0]
        # T5's first sentinel replaces the mask token of other tokenizers.
        mask_token = tokenizer.mask_token or "<extra_id_0>"
        is_mask = [token == tokenizer.get_vocab().get(mask_token) for token in ids]
        is_content = [token not in tokenizer.all_special_ids for token in ids]
        mean = torch.stack([states[i] for i in range(len(ids)) if is_content[i] or is_mask[i]]).mean(0)
        bag = torch.stack([table[ids[i]] for i in range(len(ids)) if is_content[i]]).mean(0)
        mask = states[is_mask.index(True)] if any(is_mask) else states[0]
        result[word] = result[word] + weight * torch.cat([mean, states[0], mask, bag])
    return torch.stack(result)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    make_tokenizer, make_model = FAMILIES[request.param]
    tokenizer = make_tokenizer()
    return make_model(tokenizer), tokenizer


@pytest.fixture
def bert() -> tuple[BertModel, PreTrainedTokenizerBase]:
    tokenizer = wordpiece_tokenizer()
    return tiny_bert(tokenizer), tokenizer


def features_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Tensor:
    options = {"features": FEATURES, "precision": "float32"} | options
    return word_features(model, tokenizer, texts_for(tokenizer), options.pop("features"), **options)


def test_features_equal_a_loop_over_single_texts(family):
    model, tokenizer = family
    features = features_of(model, tokenizer, batch_size=5)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, slow_features(model, tokenizer, texts_for(tokenizer)), rtol=0, atol=1e-5)


DEEP = {
    "encoder": (wordpiece_tokenizer, lambda t: tiny_bert(t, num_hidden_layers=LAYERS)),
    "encoder with a head": (
        byte_bpe_tokenizer,
        lambda t: tiny_roberta(t, RobertaForMaskedLM, num_hidden_layers=LAYERS),
    ),
    "encoder-decoder": (unigram_tokenizer, lambda t: tiny_t5(t, LAYERS)),
    "decoder": (gemma_tokenizer, lambda t: tiny_model(LlamaForCausalLM, t, num_hidden_layers=LAYERS)),
    # Its texts end with a special token.
    "decoder with a closing token": (byte_bpe_tokenizer, lambda t: tiny_model(GPT2Model, t, n_layer=LAYERS)),
}


def slow_layer_features(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: DefinitionTexts, layers: list[int], middle: int
) -> Tensor:
    """Layer by layer, text by text: the outputs of the modules that are the layers, from hooks."""
    encoder = model.get_encoder() if model.config.is_encoder_decoder else getattr(model, model.base_model_prefix, model)
    stack = next(module for module in encoder.modules() if isinstance(module, nn.ModuleList) and len(module) == LAYERS)
    outputs: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _, __, out: outputs.append(out[0] if isinstance(out, tuple) else out))
        for module in stack
    ]
    mask = tokenizer.get_vocab().get(mask_text(tokenizer))
    result = [0.0] * (int(texts.word.max()) + 1)
    for text, word, weight in zip(texts.text.tolist(), texts.word.tolist(), texts.weight.tolist(), strict=True):
        ids = texts.input_ids[text]
        outputs.clear()
        with torch.no_grad():
            last = encoder(input_ids=torch.tensor([ids])).last_hidden_state
        of_layers = [*outputs[:-1], last]
        content = [i for i, token in enumerate(ids) if token not in tokenizer.all_special_ids]
        read = [i for i, token in enumerate(ids) if i in content or token == mask]
        means = [torch.stack([of_layers[layer - 1][0, i] for i in read]).mean(0) for layer in [*layers, middle]]
        result[word] = result[word] + weight * torch.cat([*means, last[0, content[-1]]])
    for hook in hooks:
        hook.remove()
    return torch.stack(result)


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("style", ["mask", "synonyms"])
def test_features_of_layers_equal_a_loop_over_single_texts(kind, style):
    make_tokenizer, make_model = DEEP[kind]
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    texts = definition_texts(*dictionary(), tokenizer, 64, style)
    found = word_features(model, tokenizer, texts, NEW_FEATURES, precision="float32", batch_size=5)
    assert found.shape[1] == (3 + 1 + 1) * 32
    expected = slow_layer_features(model, tokenizer, texts, layers=[2, 5, 7], middle=4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("layers", "read", "middle"), [(1, [1], 1), (2, [1, 2], 1), (3, [1, 2, 3], 2), (4, [1, 3, 4], 2), (6, [2, 4, 6], 3)]
)
def test_layers_at_one_third_two_thirds_and_the_end(layers, read, middle):
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer, num_hidden_layers=layers)
    texts = DefinitionTexts([[6, 50, 60, 7]], torch.tensor([0]), torch.tensor([0]), torch.ones(1))
    found = word_features(model, tokenizer, texts, ["layers", "middle"], precision="float32")
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor(texts.input_ids), output_hidden_states=True).hidden_states
    expected = torch.cat([hidden[layer][0, 1:3].mean(0) for layer in [*read, middle]])
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_definition_head_on_a_task_head_leaves_the_layers(precision):
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer, BertForMaskedLM)
    options = {"features": NEW_FEATURES, "precision": precision}
    expected = features_of(model, tokenizer, **options)
    assert torch.equal(features_of(with_definition_head(model), tokenizer, **options), expected)


def test_a_definition_head_on_a_bare_model_hides_the_layers(bert, caplog):
    """transformers records hidden states by class, and does not know this class."""
    backbone, tokenizer = bert
    with caplog.at_level(logging.INFO, "defemb_callbacks"):
        found = features_of(with_definition_head(backbone), tokenizer, features=["layers"])
    assert "DefinitionEMBBertModel does not return the hidden states of its layers" in caplog.text
    assert torch.equal(found, features_of(backbone, tokenizer, features=["mean"]))


@pytest.mark.parametrize("shape", ["none", "pooled", "streams"])
def test_models_without_states_of_layers_are_read_at_the_last_layer(bert, monkeypatch, caplog, shape):
    model, tokenizer = bert
    forward = model.forward

    def without(*args: Any, **options: Any) -> Any:
        output = forward(*args, **options)
        if output.hidden_states is not None:
            states = output.hidden_states
            shapes = {
                "none": None,
                "pooled": tuple(layer[:, ::2] for layer in states),
                # As models with hyper-connections do.
                "streams": tuple(layer[:, :, None].expand(-1, -1, 2, -1) for layer in states),
            }
            output["hidden_states"] = shapes[shape]
        return output

    monkeypatch.setattr(model, "forward", without)
    with caplog.at_level(logging.INFO, "defemb_callbacks"):
        found = features_of(model, tokenizer, features=["layers", "middle"])
    assert caplog.text.count("BertModel does not return the hidden states of its layers") == 1
    mean = features_of(model, tokenizer, features=["mean"])
    assert torch.equal(found, torch.cat([mean, mean], dim=1))


@pytest.mark.parametrize("name", ["mean", "first", "last", "mask", "layers", "middle"])
def test_states_that_are_not_one_per_token_are_averaged(name):
    """Funnel pools its states from layer to layer."""
    tokenizer = wordpiece_tokenizer()
    sizes = {"block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64}
    model = FunnelBaseModel(FunnelConfig(vocab_size=len(tokenizer), **sizes)).eval()
    texts = DefinitionTexts([[6, 50, 60, 70, 80, 90, 7]], torch.tensor([0]), torch.tensor([0]), torch.ones(1))
    found = word_features(model, tokenizer, texts, [name], precision="float32")
    with torch.no_grad():
        states = model(input_ids=torch.tensor(texts.input_ids)).last_hidden_state[0]
    assert len(states) < 7
    expected = {"first": states[0], "mask": states[0], "last": states[-1]}.get(name, states.mean(dim=0))
    torch.testing.assert_close(found[0], expected)


def test_the_bag_alone_does_not_run_the_model(bert):
    model, tokenizer = bert
    expected = features_of(model, tokenizer)[:, -32:]

    def run(*_: Any) -> None:
        raise AssertionError("The model was run.")

    model.encoder.register_forward_pre_hook(run)
    for precision in ("auto", "bfloat16", "float32"):
        found = features_of(model, tokenizer, features=["bag"], precision=precision)
        assert torch.equal(found, expected)


def test_decoders_build_no_cache():
    tokenizer = gemma_tokenizer()
    model = tiny_model(LlamaForCausalLM, tokenizer)
    caches = []
    model.model.register_forward_hook(lambda _, __, output: caches.append(output.past_key_values))
    features_of(model, tokenizer, features=["last", "middle"])
    assert caches
    assert set(caches) == {None}


@pytest.mark.parametrize("name", FEATURES)
def test_each_feature_alone_is_its_part_of_all_together(bert, name):
    width, position = 32, FEATURES.index(name)
    together = features_of(*bert)[:, position * width : (position + 1) * width]
    torch.testing.assert_close(features_of(*bert, features=[name]), together)


def test_features_differ_from_word_to_word_and_from_one_another(bert):
    """Otherwise, the comparisons in this file would be uninformative."""
    parts = features_of(*bert).split(32, dim=1)
    for part in parts:
        assert torch.pdist(part[:-2]).min() > 1e-3
    for i, part in enumerate(parts):
        assert all((part - other).abs().mean() > 0.05 for other in parts[:i])


def test_words_with_the_same_texts_have_the_same_features(bert):
    features = features_of(*bert)
    torch.testing.assert_close(features[-1], features[-2])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 1000])
def test_the_batch_size_does_not_change_the_features(bert, batch_size):
    expected = features_of(*bert, batch_size=7)
    torch.testing.assert_close(features_of(*bert, batch_size=batch_size), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_class", [BertForMaskedLM, BertForSequenceClassification])
def test_a_task_head_is_ignored(bert, model_class):
    backbone, tokenizer = bert
    model = tiny_bert(tokenizer, model_class)
    model.bert.load_state_dict(backbone.state_dict(), strict=False)
    assert torch.equal(features_of(model, tokenizer), features_of(backbone, tokenizer))


def test_a_definition_head_is_ignored(bert):
    backbone, tokenizer = bert
    wrapped = with_definition_head(backbone, mask_token_id=tokenizer.mask_token_id)
    assert torch.equal(features_of(wrapped, tokenizer), features_of(backbone, tokenizer))


def test_bfloat16_is_close_to_float32(family):
    exact, rounded = (features_of(*family, precision=precision) for precision in ("float32", "bfloat16"))
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert torch.cosine_similarity(exact, rounded).min() > 0.999


def test_auto_uses_bfloat16_only_if_it_agrees(bert, monkeypatch, caplog):
    monkeypatch.setattr(features, "has_fast_bfloat16", lambda device: True)
    exact, rounded = (features_of(*bert, precision=precision) for precision in ("float32", "bfloat16"))
    monkeypatch.setattr(features, "AGREEMENT", -1.0)
    assert torch.equal(features_of(*bert, precision="auto"), rounded)
    monkeypatch.setattr(features, "AGREEMENT", 1.1)
    with caplog.at_level(logging.INFO, "defemb_callbacks"):
        assert torch.equal(features_of(*bert, precision="auto"), exact)
    assert "float32 is used" in caplog.text


@pytest.mark.parametrize("part", range(len(FEATURES)))
@pytest.mark.parametrize(("shares", "agrees"), [((), True), ((-1.0,), True), ((-1.0,) * 4, False), ((0.5,) * 99, True)])
def test_the_trial_compares_the_mean_of_each_feature(bert, monkeypatch, part, shares, agrees):
    """One text of the trial may differ, several may not; the scale of a feature does not count."""
    monkeypatch.setattr(features, "has_fast_bfloat16", lambda device: True)
    monkeypatch.setattr(features, "AGREEMENT", 0.93)
    exact, rounded = (features_of(*bert, precision=precision) for precision in ("float32", "bfloat16"))
    parts, left = features._TextReader.parts, [*shares]
    trial = len(texts_for(bert[1]).input_ids)
    assert features.TRIAL_TEXTS <= trial < 3 * features.TRIAL_TEXTS

    def changed(self: Any, input_ids: Tensor, weights: Any = None) -> list[Tensor]:
        found = parts(self, input_ids, weights)
        if weights is not None:  # the trial comes first
            for row in range(min(len(left), len(input_ids))):
                found[part][row] *= left.pop()
        return found

    lower_precision = features._lower_precision

    def trial_only(*arguments: Any) -> Any:
        with monkeypatch.context() as context:
            context.setattr(features._TextReader, "parts", changed)
            return lower_precision(*arguments)

    monkeypatch.setattr(features, "_lower_precision", trial_only)
    found = features_of(*bert, precision="auto")
    assert torch.equal(found, rounded if agrees else exact)


@pytest.mark.parametrize(
    "error",
    [
        *(RuntimeError("mat1 and mat2 must have the same dtype"), NotImplementedError("no kernel")),
        *(TypeError("unsupported operand type"), ValueError("dtypes differ"), AssertionError("dtype")),
    ],
)
def test_models_that_fail_in_bfloat16_are_read_in_float32(bert, monkeypatch, caplog, error):
    model, tokenizer = bert
    exact = features_of(*bert, precision="float32")
    monkeypatch.setattr(features, "has_fast_bfloat16", lambda device: True)

    def failing(module: nn.Module, inputs: Any) -> None:
        if module.query.weight.dtype == torch.bfloat16:
            raise error

    model.encoder.layer[1].attention.self.register_forward_pre_hook(failing)
    with caplog.at_level(logging.INFO, "defemb_callbacks"):
        assert torch.equal(features_of(model, tokenizer, precision="auto"), exact)
    assert f"cannot be read in bfloat16 ({error}); float32 is used" in caplog.text
    with pytest.raises(type(error), match=str(error)):
        features_of(model, tokenizer, precision="bfloat16")


def test_auto_uses_float32_if_bfloat16_would_be_emulated(bert, monkeypatch):
    monkeypatch.setattr(features, "has_fast_bfloat16", lambda device: False)
    assert torch.equal(features_of(*bert, precision="auto"), features_of(*bert, precision="float32"))


def test_a_model_in_bfloat16_gives_float32_features_close_to_its_own_in_float32(bert):
    model, tokenizer = bert
    expected = features_of(model, tokenizer)
    rounded = features_of(model.to(torch.bfloat16), tokenizer, precision="auto")
    assert rounded.dtype == torch.float32
    assert torch.cosine_similarity(expected, rounded).min() > 0.999


def test_the_mode_of_each_module_is_restored(bert):
    model, tokenizer = bert
    model.train()
    model.encoder.layer[1].eval()  # as scripts do that freeze a part of the model
    modes = {name: module.training for name, module in model.named_modules()}
    assert len(set(modes.values())) == 2
    features_of(model, tokenizer)
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_the_modes_are_restored_after_an_error_too(bert):
    model, tokenizer = bert
    model.train()
    with pytest.raises(KeyError, match="nonsense"):
        features_of(model, tokenizer, features=["nonsense"])
    assert all(module.training for module in model.modules())


def test_dropout_and_noise_are_disabled(bert):
    """NEFTune is such a hook: it acts on the embeddings' output while they are in training mode."""
    model, tokenizer = bert
    expected = features_of(model, tokenizer)

    def noise(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output + torch.randn_like(output) if module.training else output

    model.train().get_input_embeddings().register_forward_hook(noise)
    assert torch.equal(features_of(model, tokenizer), expected)


def test_the_random_state_is_untouched(bert):
    model, tokenizer = bert
    model.train()
    state = torch.get_rng_state()
    features_of(model, tokenizer)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_gradients_are_kept_and_training_continues_afterwards(bert):
    model, tokenizer = bert
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    features = features_of(model.train(), tokenizer)
    assert not features.requires_grad
    assert not features.is_inference()
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    map_of_features = nn.Linear(features.shape[1], 1)
    states = model(input_ids=torch.tensor([[6, 50, 7]])).last_hidden_state
    (map_of_features(features).sum() + states.sum()).backward()
    assert model.get_input_embeddings().weight.grad is not None
    assert map_of_features.weight.grad is not None


def test_padding_in_the_tokenizer_does_not_reach_the_texts(bert):
    _, tokenizer = bert
    tokenizer.padding_side = "left"
    assert not any(tokenizer.pad_token_id in ids for ids in texts_for(tokenizer).input_ids)


def test_each_different_text_is_encoded_once(bert):
    _, tokenizer = bert
    words, found = dictionary()
    texts = texts_for(tokenizer)
    assert len(texts.text) == len(texts.word) == len(texts.weight) == sum(map(len, found))
    assert texts.text.unique().tolist() == list(range(len(texts.input_ids)))
    assert len(texts.input_ids) < len(texts.text)
    assert texts.text[-1] == texts.text[-2]
    assert texts.tokens == sum(len(ids) for ids in texts.input_ids)
    assert texts.word.unique().tolist() == list(range(len(words)))


def test_the_texts_are_the_prompts(bert):
    _, tokenizer = bert
    texts = definition_texts(["dog"], [[Definition("dog", "an animal that runs")]], tokenizer, 64)
    assert tokenizer.convert_ids_to_tokens(texts.input_ids[0])[:4] == ["[CLS]", "[MASK]", ":", "an"]


@pytest.mark.parametrize("max_length", [4, 7, 11])
def test_long_texts_are_cut_and_keep_their_closing_token(bert, max_length):
    _, tokenizer = bert
    texts = texts_for(tokenizer, max_length)
    assert max(map(len, texts.input_ids)) == max_length
    assert all(ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id for ids in texts.input_ids)


def test_the_weights_of_every_word_add_up_to_1(bert):
    texts = texts_for(bert[1])
    sums = torch.zeros(int(texts.word.max()) + 1).index_add_(0, texts.word, texts.weight)
    torch.testing.assert_close(sums, torch.ones_like(sums))


def senses(source: str, *ranks: int) -> list[Definition]:
    return [Definition("cat", f"sense {rank}", rank=rank, source=source) for rank in ranks]


def test_every_dictionary_has_the_same_total_weight():
    weights = sense_weights([*senses("a", 1, 2, 3, 4, 5), *senses("b", 1), *senses("c", 2, 9)])
    assert sum(weights) == pytest.approx(1)
    assert sum(weights[:5]) == pytest.approx(1 / 3)
    assert weights[5] == pytest.approx(1 / 3)
    assert sum(weights[6:]) == pytest.approx(1 / 3)


def test_within_a_dictionary_the_weight_is_1_over_the_rank():
    weights = sense_weights(senses("a", 1, 2, 4))
    assert [weight / weights[0] for weight in weights] == pytest.approx([1, 1 / 2, 1 / 4])
    assert sense_weights(senses("a", 3)) == [1.0]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_batches_group_texts_by_length_longest_first(batch_size):
    lengths = torch.randint(3, 12, (60,)).tolist()
    batches = equal_length_batches(lengths, batch_size)
    assert sorted(position for batch in batches for position in batch) == list(range(60))
    assert all(0 < len(batch) <= batch_size for batch in batches)
    of_batches = [{lengths[position] for position in batch} for batch in batches]
    assert all(len(of_batch) == 1 for of_batch in of_batches)
    longest_first = [of_batch.pop() for of_batch in of_batches]
    assert longest_first == sorted(longest_first, reverse=True)
    # No more batches than needed.
    assert len(batches) == sum(-(-lengths.count(length) // batch_size) for length in set(lengths))


def test_no_texts_give_no_batches():
    assert equal_length_batches([], 4) == []


def test_a_definition_of_only_special_tokens_is_averaged_over_all_of_them(bert):
    model, tokenizer = bert
    cls, sep, cat = tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", "cat"])
    numbers = torch.arange(2)
    texts = DefinitionTexts([[cls, sep, sep], [cls, cat, sep]], numbers, numbers, torch.ones(2))
    found = word_features(model, tokenizer, texts, ["mean", "bag"], precision="float32")
    table = model.get_input_embeddings().weight.detach()
    with torch.no_grad():
        states = model(input_ids=torch.tensor(texts.input_ids)).last_hidden_state
    only_special = torch.cat([states[0].mean(dim=0), table[[cls, sep, sep]].mean(dim=0)])
    with_a_word = torch.cat([states[1, 1], table[cat]])
    torch.testing.assert_close(found, torch.stack([only_special, with_a_word]), rtol=0, atol=1e-5)
