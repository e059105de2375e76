"""The change of a language model's embeddings is limited by its effect on the predictions."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MobileBertConfig,
    MobileBertForMaskedLM,
    PreTrainedModel,
    T5ForConditionalGeneration,
)

from defemb_callbacks import DefinitionEMBConfig, DefinitionEmbeddings, build_definition_embeddings
from defemb_callbacks.embeddings import language_model
from defemb_callbacks.embeddings.language_model import (
    Choice,
    LanguageModelProbe,
    Measurement,
    choose_harmless,
    is_measurable,
    serves_as_output,
)
from defemb_callbacks.weights.rows import read_table, write_rows
from tiny import byte_bpe_tokenizer, tiny_glossary, tiny_model, unigram_tokenizer, wordpiece_tokenizer

TEXTS = [[5, 9, 12, 40, 7], [8, 8, 60, 61], [70, 71, 72, 73, 74, 75, 76, 77, 78]]


def causal(**config: Any) -> PreTrainedModel:
    return tiny_model(LlamaForCausalLM, byte_bpe_tokenizer(), **config).eval()


def probe(model: PreTrainedModel, **options: Any) -> LanguageModelProbe:
    return LanguageModelProbe(model, TEXTS, options.get("table", "input"), options.get("mask_token_id"))


def rows_of(model: PreTrainedModel, scale: float, count: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.arange(5, 5 + count)
    old = read_table(model)[ids]
    noise = torch.randn(old.shape, generator=torch.Generator().manual_seed(0)) * old.norm(dim=1).mean()
    return ids, old, old + scale * noise


class TestProbe:
    def test_predictions_that_are_not_finite_are_not_measured(self):
        model = causal()
        with torch.no_grad():
            model.model.norm.weight[3] = float("nan")
        with pytest.raises(ValueError, match="LlamaForCausalLM gives NaN or infinite predictions"):
            probe(model)

    def test_a_head_that_bypasses_its_output_embeddings_is_not_measured(self, caplog):
        """MobileBERT multiplies states with two tables at once."""
        tokenizer = wordpiece_tokenizer()
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
        widths = {"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32}
        model = MobileBertForMaskedLM(MobileBertConfig(vocab_size=len(tokenizer), **sizes, **widths)).eval()
        with pytest.raises(ValueError, match="its head does not call its output embeddings"):
            probe(model, mask_token_id=tokenizer.mask_token_id)
        config = DefinitionEMBConfig(precision="float32")
        before = read_table(model)
        with caplog.at_level(logging.WARNING, "defemb_callbacks"):
            build_definition_embeddings(model, tokenizer, tiny_glossary(), config).apply(model, config)
        assert "predictions of MobileBertForMaskedLM cannot be measured" in caplog.text
        assert torch.equal(read_table(model), before)

    def test_the_loss_is_that_of_the_model_on_each_text(self):
        model = causal()
        measured = probe(model).measure(*rows_of(model, 0.0))
        losses = [
            model(input_ids=torch.tensor([text]), labels=torch.tensor([text])).loss * (len(text) - 1) for text in TEXTS
        ]
        assert measured.tokens == sum(len(text) - 1 for text in TEXTS)
        assert measured.loss_before == pytest.approx(float(sum(losses).detach()) / measured.tokens, rel=1e-5)
        assert measured.loss_after == pytest.approx(measured.loss_before, abs=1e-6)
        assert measured.divergence == pytest.approx(0, abs=1e-6)

    def test_new_rows_are_measured_and_the_old_ones_restored(self):
        model = causal()
        before = read_table(model)
        ids, old, new = rows_of(model, 0.5)
        measured = probe(model).measure(ids, old, new)
        assert torch.equal(read_table(model), before)
        write_rows(model, ids, new)
        losses = [
            model(input_ids=torch.tensor([text]), labels=torch.tensor([text])).loss * (len(text) - 1) for text in TEXTS
        ]
        assert measured.loss_after == pytest.approx(float(sum(losses)) / measured.tokens, rel=1e-5)

    def test_the_divergence_equals_a_plain_computation(self):
        model = causal()
        ids, old, new = rows_of(model, 0.3)
        measured = probe(model).measure(ids, old, new)
        with torch.no_grad():
            reference = [
                model(input_ids=torch.tensor([text])).logits[0, :-1].double().log_softmax(-1) for text in TEXTS
            ]
            write_rows(model, ids, new)
            changed = [model(input_ids=torch.tensor([text])).logits[0, :-1].double().log_softmax(-1) for text in TEXTS]
        expected = [(p.exp() * (p - q)).sum(-1) for p, q in zip(reference, changed, strict=True)]
        assert measured.divergence == pytest.approx(float(torch.cat(expected).mean()), rel=1e-4)

    def test_larger_changes_diverge_more(self):
        model = causal()
        probed = probe(model)
        divergences = [probed.measure(*rows_of(model, scale)).divergence for scale in (0.0, 0.1, 0.3, 1.0)]
        assert divergences == sorted(divergences)

    def test_rows_are_restored_after_an_error(self):
        model = causal()
        probed, before = probe(model), read_table(model)
        ids, old, new = rows_of(model, 0.5)
        handle = model.model.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        with pytest.raises(RuntimeError, match="out of memory"):
            probed.measure(ids, old, new)
        handle.remove()
        assert torch.equal(read_table(model), before)

    def test_training_mode_and_hooks_are_unchanged(self):
        model = causal().train()
        probe(model).measure(*rows_of(model, 0.1))
        assert model.training
        assert not model.get_output_embeddings()._forward_pre_hooks

    def test_the_second_moment_is_that_of_the_states(self):
        model = causal()
        with torch.no_grad():
            states = torch.cat([model.model(input_ids=torch.tensor([text])).last_hidden_state[0] for text in TEXTS])
        torch.testing.assert_close(
            probe(model).second_moment, (states.T @ states).double() / len(states), rtol=1e-4, atol=1e-6
        )

    def test_a_masked_language_model_predicts_masked_tokens_only(self):
        tokenizer = wordpiece_tokenizer()
        model = tiny_model(BertForMaskedLM, tokenizer)
        probed = probe(model, mask_token_id=tokenizer.mask_token_id)
        measured = probed.measure(*rows_of(model, 0.3))
        assert measured.tokens == sum(len(text[1::7]) for text in TEXTS)
        assert measured.divergence > 0

    def test_an_encoder_decoder_predicts_the_text(self):
        tokenizer = unigram_tokenizer()
        model = tiny_model(T5ForConditionalGeneration, tokenizer)
        measured = probe(model, mask_token_id=1).measure(*rows_of(model, 0.3))
        assert measured.tokens == sum(map(len, TEXTS))
        assert measured.divergence > 0

    def test_large_vocabularies_are_sampled(self, monkeypatch):
        model = causal()
        whole = probe(model).measure(*rows_of(model, 0.5))
        monkeypatch.setattr(language_model, "_REFERENCE_SIZE", 4 * model.config.vocab_size)
        sampled = probe(model).measure(*rows_of(model, 0.5))
        assert sampled.loss_after == whole.loss_after
        assert sampled.divergence == pytest.approx(whole.divergence, rel=1)


class TestRoles:
    def test_what_can_be_measured(self):
        bpe, wordpiece = byte_bpe_tokenizer(), wordpiece_tokenizer()
        sizes = {"n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": len(bpe), "pad_token_id": 0}
        assert is_measurable(GPT2LMHeadModel(GPT2Config(**sizes)))
        assert is_measurable(GPT2ForSequenceClassification(GPT2Config(**sizes)))  # its head was tied
        assert not is_measurable(GPT2ForSequenceClassification(GPT2Config(**sizes, tie_word_embeddings=False)))
        assert is_measurable(tiny_model(BertForMaskedLM, wordpiece))
        assert not is_measurable(tiny_model(BertForSequenceClassification, wordpiece))

    def test_what_serves_as_output(self):
        assert serves_as_output(causal(tie_word_embeddings=True), "input")
        assert not serves_as_output(causal(tie_word_embeddings=False), "input")
        assert serves_as_output(causal(tie_word_embeddings=False), "output")


class Scripted:
    """A probe for which every change above a limit is harmful."""

    def __init__(self, limit: float) -> None:
        self.limit, self.asked = limit, []

    def measure(self, ids: Tensor, old: Tensor, new: Tensor) -> Measurement:
        self.asked.append(float(new))
        return Measurement(10, 1.0, 1.0, 0.1, 0.0 if float(new) <= self.limit else 1.0)


class TestChoice:
    candidates = tuple((share, None) for share in (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12))

    @pytest.mark.parametrize(("limit", "expected"), [(1.0, 1.0), (0.6, 0.5), (0.2, 0.18), (0.12, 0.12), (0.05, 0.0)])
    def test_the_largest_harmless_change_is_found(self, limit, expected):
        model = Scripted(limit)
        choice = choose_harmless(
            model, self.candidates, lambda share, _: (torch.zeros(1), torch.zeros(1), torch.tensor(share))
        )
        assert choice.share == expected
        assert len(model.asked) <= 3

    def test_a_loss_above_the_standard_error_is_harmful(self):
        assert not Measurement(10, 1.0, 1.02, 0.01, 0.0).harmless
        assert Measurement(10, 1.0, 1.005, 0.01, 0.0).harmless
        assert not Measurement(10, 1.0, 0.9, 0.01, 0.1).harmless


@pytest.fixture
def embeddings() -> DefinitionEmbeddings:
    return build_definition_embeddings(causal(), byte_bpe_tokenizer(), tiny_glossary())


class TestApply:
    def test_the_report_has_the_loss_before_and_after(self, embeddings):
        model = causal()
        report = embeddings.apply(model)
        measured = report.info["language_model"]
        assert measured["divergence"] <= language_model.MAX_DIVERGENCE
        assert f"{measured['loss_before']:.4f} → {measured['loss_after']:.4f}" in str(report)

    def test_a_model_without_a_harmless_candidate_is_unchanged(self, embeddings, monkeypatch, caplog):
        monkeypatch.setattr(language_model, "MAX_DIVERGENCE", -1.0)
        model = causal()
        before = read_table(model)
        with caplog.at_level(logging.WARNING, "defemb_callbacks"):
            report = embeddings.apply(model)
        assert torch.equal(read_table(model), before)
        assert report.rebuilt == 0
        assert "The embeddings were not changed" in caplog.text
        assert "Nothing was written" in str(report)

    def test_a_model_that_cannot_be_measured_is_unchanged(self, embeddings, caplog):
        model = causal(tie_word_embeddings=True)
        before = read_table(model)
        handle = model.register_forward_hook(lambda *_: (_ for _ in ()).throw(ValueError("needs pixel_values")))
        with caplog.at_level(logging.WARNING, "defemb_callbacks"):
            report = embeddings.apply(model)
        handle.remove()
        assert torch.equal(read_table(model), before)
        assert "The predictions of LlamaForCausalLM cannot be measured: needs pixel_values" in caplog.text
        assert "could not be measured" in str(report)

    def test_without_texts_to_measure_a_tied_model_is_unchanged(self, embeddings, caplog):
        model = causal(tie_word_embeddings=True)
        before = read_table(model)
        with caplog.at_level(logging.WARNING, "defemb_callbacks"):
            replace(embeddings, texts=()).apply(model)
        assert torch.equal(read_table(model), before)
        assert "not changed: they contain no texts on which the predictions of this language model" in caplog.text
        replace(embeddings, texts=()).apply(model, DefinitionEMBConfig(blend=0.2), force=True)
        assert not torch.equal(read_table(model), before)

    def test_a_model_with_infinite_states_is_unchanged(self, embeddings, caplog):
        model = causal(tie_word_embeddings=True)
        with torch.no_grad():
            model.model.norm.weight[0] = torch.inf
        before = read_table(model)
        with caplog.at_level(logging.WARNING, "defemb_callbacks"):
            embeddings.apply(model)
        assert torch.equal(read_table(model), before)
        assert "cannot be measured: LlamaForCausalLM gives NaN or infinite predictions" in caplog.text

    def test_two_pretraining_heads_are_read_by_their_token_predictions(self):
        tokenizer = wordpiece_tokenizer()
        model = tiny_model(BertForPreTraining, tokenizer)
        assert probe(model, mask_token_id=tokenizer.mask_token_id).measure(*rows_of(model, 0.3)).divergence > 0

    def test_a_given_weight_is_used_unchanged(self, embeddings):
        report = embeddings.apply(causal(), DefinitionEMBConfig(blend=0.3))
        assert "language_model" not in report.info
        assert report.info["blend_weight"] == pytest.approx(0.3, abs=0.05)

    def test_a_harmful_weight_for_a_tied_table_warns(self, embeddings, caplog):
        with caplog.at_level(logging.WARNING, "defemb_callbacks"):
            report = embeddings.apply(causal(tie_word_embeddings=True), DefinitionEMBConfig(blend=1.0))
        assert report.rebuilt
        assert report.info["language_model"]["divergence"] > language_model.MAX_DIVERGENCE
        assert "These rows change the loss of this language model from" in caplog.text

    def test_replacing_a_tied_table_warns_with_the_loss(self, embeddings, caplog):
        with caplog.at_level(logging.WARNING, "defemb_callbacks"):
            report = embeddings.apply(causal(tie_word_embeddings=True), DefinitionEMBConfig(strategy="replace"))
        measured = report.info["language_model"]
        assert f"from {measured['loss_before']:.3f} to {measured['loss_after']:.3f} nats per token" in caplog.text

    def test_the_choice_is_the_same_after_saving_and_loading(self, embeddings, tmp_path):
        embeddings.save_pretrained(tmp_path)
        loaded = DefinitionEmbeddings.from_pretrained(tmp_path)
        assert loaded.texts == embeddings.texts
        first, second = causal(), causal()
        embeddings.apply(first)
        loaded.apply(second)
        assert torch.equal(read_table(first), read_table(second))

    def test_texts_of_another_vocabulary_are_refused(self, embeddings):
        with pytest.raises(ValueError, match="`texts` must contain ids from 0 to"):
            DefinitionEmbeddings(embeddings.ids, embeddings.rows, embeddings.vocabulary, texts=((10**6,),))

    def test_a_choice_is_plain_json(self):
        assert Choice(0.5, None, Measurement(1, 1.0, 1.0, 0.0, 0.0)).measurement.to_dict()["tokens"] == 1
