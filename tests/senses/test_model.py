"""Models with senses."""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BartModel,
    BertForSequenceClassification,
    DebertaV2ForSequenceClassification,
    ElectraForSequenceClassification,
    GPT2ForSequenceClassification,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaForSequenceClassification,
    T5ForConditionalGeneration,
)

import tiny
from defemb_callbacks.reconstruction.backbone import backbone_of, last_states
from defemb_callbacks.senses import (
    SenseDictionary,
    build_sense_dictionary,
    with_senses,
    without_senses,
)
from defemb_callbacks.senses.layer import INPUT_IDS, SenseLayer, recorded_states
from defemb_callbacks.senses.model import check_model, check_tokenizer

TEXTS = tiny.random_texts(160)


def of_class(model_class: type[PreTrainedModel], tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    if model_class is BertForSequenceClassification:
        return tiny.tiny_bert(tokenizer, model_class)
    if model_class is RobertaForSequenceClassification:
        return tiny.tiny_roberta(tokenizer, model_class)
    return tiny.tiny_model(model_class, tokenizer)


@pytest.mark.parametrize(
    "model_class",
    [
        BertForSequenceClassification,
        RobertaForSequenceClassification,
        ElectraForSequenceClassification,
        DebertaV2ForSequenceClassification,
        GPT2ForSequenceClassification,
        LlamaForCausalLM,
        BartModel,
        T5ForConditionalGeneration,
    ],
)
def test_last_hidden_states_are_senses(model_class: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    model = of_class(model_class, tokenizer)
    dictionary = build_sense_dictionary(model, tokenizer, TEXTS, senses=3)
    batch = tokenizer(TEXTS[:4], return_tensors="pt", padding=True, return_token_type_ids=False)
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"][:, :3]
    with torch.no_grad():
        states, output = last_states(model, batch["input_ids"], batch["attention_mask"]), model(**batch)[0]
        with_senses(model, dictionary)
        senses, replaced = last_states(model, batch["input_ids"], batch["attention_mask"]), model(**batch)[0]
    assert torch.equal(senses, dictionary.lookup(states, batch["input_ids"]))
    assert not torch.equal(senses, states)
    assert (replaced - output).abs().max() > 1e-3
    with torch.no_grad():
        as_tuple = backbone_of(model)(batch["input_ids"], attention_mask=batch["attention_mask"], return_dict=False)
        again = model(**without_senses(model) and batch)[0]
    assert torch.equal(as_tuple[0], senses)
    assert torch.equal(again, output)


def test_pooler_reads_senses(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dictionary: SenseDictionary
) -> None:
    ids = tokenizer(TEXTS[:3], return_tensors="pt", padding=True)["input_ids"]
    model = with_senses(copy.deepcopy(teacher), dictionary)
    with torch.no_grad():
        output = model.bert(ids)
        expected = model.bert.pooler(output.last_hidden_state)
        torch.testing.assert_close(output.pooler_output, expected)
        torch.testing.assert_close(model(ids).logits, model.classifier(expected))


def test_checkpoints_do_not_contain_the_dictionary(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dictionary: SenseDictionary, tmp_path: Path
) -> None:
    model = with_senses(copy.deepcopy(teacher), dictionary)
    assert model.state_dict().keys() == teacher.state_dict().keys()
    model.save_pretrained(tmp_path)
    loaded = BertForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = tokenizer(TEXTS[:3], return_tensors="pt", padding=True)["input_ids"]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, teacher(ids).logits)
        assert torch.equal(with_senses(loaded, dictionary)(ids).logits, model(ids).logits)


@pytest.mark.slow
def test_compiled_model_has_the_same_senses(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dictionary: SenseDictionary
) -> None:
    model = with_senses(copy.deepcopy(teacher), dictionary)
    ids = tokenizer(TEXTS[:3], return_tensors="pt", padding=True)["input_ids"]
    with torch.no_grad(), recorded_states(compiled := torch.compile(model, backend="eager")) as recorded:
        torch.testing.assert_close(compiled(ids).logits, model(ids).logits)
    assert len(recorded) == 2


def test_dictionary_has_no_buffers(teacher: PreTrainedModel, dictionary: SenseDictionary) -> None:
    names = {name for name, _ in teacher.named_buffers()}
    assert {name for name, _ in with_senses(copy.deepcopy(teacher), dictionary).named_buffers()} == names
    moved = copy.deepcopy(dictionary).to("meta")
    assert {getattr(moved, name).device.type for name in ("offsets", "vectors", "counts", "lengths")} == {"meta"}
    assert dictionary.vectors.device.type == "cpu"


def test_dictionary_follows_the_device_of_the_states(
    dictionary: SenseDictionary, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last layer of a model on several devices may be on another device than its embeddings.
    devices: list[torch.device] = []

    def lookup(self: SenseDictionary, states: Tensor, ids: Tensor) -> Tensor:
        devices.extend([self.vectors.device, ids.device])
        return states

    monkeypatch.setattr(SenseDictionary, "lookup", lookup)
    layer = SenseLayer(copy.deepcopy(dictionary))
    before = INPUT_IDS.set(torch.tensor([[9, 8, 7]]))
    layer.replace_output(layer, (), (torch.zeros(1, 3, 32, device="meta"),))
    INPUT_IDS.reset(before)
    assert devices == [torch.device("meta")] * 2


def test_copies_of_a_model_are_independent(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dictionary: SenseDictionary
) -> None:
    model = with_senses(copy.deepcopy(teacher), dictionary)
    twin = copy.deepcopy(model)
    ids = tokenizer(TEXTS[:3], return_tensors="pt", padding=True)["input_ids"]
    with torch.no_grad():
        expected = model(ids).logits
        without_senses(model)
        assert torch.equal(twin(ids).logits, expected)
        assert torch.equal(without_senses(twin)(ids).logits, teacher(ids).logits)


def test_model_with_senses_can_be_pickled(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dictionary: SenseDictionary
) -> None:
    model = with_senses(copy.deepcopy(teacher), dictionary)
    twin = pickle.loads(pickle.dumps(model))
    ids = tokenizer(TEXTS[:3], return_tensors="pt", padding=True)["input_ids"]
    with torch.no_grad():
        assert torch.equal(twin(ids).logits, model(ids).logits)
        assert torch.equal(without_senses(twin)(ids).logits, teacher(ids).logits)


def test_threads_do_not_mix_their_tokens(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dictionary: SenseDictionary
) -> None:
    model = with_senses(copy.deepcopy(teacher), dictionary)
    batches = [tokenizer(text, return_tensors="pt")["input_ids"] for text in TEXTS[:2]]
    entered = threading.Barrier(len(batches))

    # Each thread waits inside the forward pass until the other one has started its own.
    def wait(*_: Any) -> None:
        entered.wait(timeout=60)

    handle = model.get_input_embeddings().register_forward_hook(wait)
    with ThreadPoolExecutor(len(batches)) as pool:
        found = list(pool.map(lambda ids: model(ids).logits.detach(), batches))
    handle.remove()
    with torch.no_grad():
        for ids, logits in zip(batches, found, strict=True):
            torch.testing.assert_close(logits, model(ids).logits)


def test_generation_with_a_cache(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny.tiny_model(LlamaForCausalLM, tokenizer)
    with_senses(model, build_sense_dictionary(model, tokenizer, TEXTS, senses=3))
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    settings |= {"eos_token_id": None}
    assert torch.equal(
        model.generate(ids, use_cache=True, **settings), model.generate(ids, use_cache=False, **settings)
    )


def test_sentence_embeddings_are_means_of_senses(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dictionary: SenseDictionary, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("sentence_transformers", reason="the extra sentence is not installed")
    teacher.bert.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = transformers.SentenceTransformer(str(tmp_path), device="cpu")
    with_senses(model.transformers_model, dictionary)
    for text, vector in zip(TEXTS[:3], model.encode(TEXTS[:3], convert_to_tensor=True), strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            senses = dictionary.lookup(last_states(teacher, ids), ids)
        torch.testing.assert_close(vector, senses[0].mean(dim=0), atol=1e-5, rtol=1e-4)


def test_original_states_are_recorded(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dictionary: SenseDictionary
) -> None:
    model = with_senses(copy.deepcopy(teacher), dictionary)
    ids = tokenizer(TEXTS[:3], return_tensors="pt", padding=True)["input_ids"]
    with torch.no_grad(), recorded_states(model) as recorded:
        model(ids)
    with torch.no_grad():
        model(ids)  # not recorded
    ((read, states),) = recorded
    assert torch.equal(read, ids)
    torch.testing.assert_close(states, last_states(teacher, ids).detach())


def test_models_that_are_rejected(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dictionary: SenseDictionary
) -> None:
    model = copy.deepcopy(teacher)
    with pytest.raises(ValueError, match=r"This model has no senses\. Call with_senses\(model, dictionary\) first"):
        without_senses(model)
    with_senses(model, dictionary)
    with pytest.raises(ValueError, match="are already senses"):
        with_senses(model, dictionary)
    with pytest.raises(ValueError, match="are already senses"):
        build_sense_dictionary(model, tokenizer, TEXTS[:5])
    with pytest.raises(ValueError, match=r"bypassed, as nn\.DataParallel does\. Start one process per device"):
        model.bert.encoder(torch.zeros(1, 2, 32))
    with pytest.raises(ValueError, match="A model with senses requires `input_ids`"):
        model(inputs_embeds=torch.zeros(1, 2, 32))
    of_layer_1 = build_sense_dictionary(teacher, tokenizer, TEXTS[:5], layer=1)
    with pytest.raises(ValueError, match="The dictionary was built with layer=1"):
        with_senses(copy.deepcopy(teacher), of_layer_1)
    prepared = copy.deepcopy(teacher)
    prepared.bert.forward = prepared.bert.forward  # as accelerate does for mixed precision
    with pytest.raises(ValueError, match="has been prepared for mixed precision by accelerate"):
        with_senses(prepared, dictionary)
    with pytest.raises(ValueError, match="was built from other weights"):
        with_senses(tiny.tiny_bert(tokenizer, BertForSequenceClassification, initializer_range=0.1), dictionary)


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
