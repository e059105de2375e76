"""define_new_tokens for every family of models: rows, tables, checkpoints, errors and rollback."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BartForConditionalGeneration,
    BertForMaskedLM,
    ElectraForMaskedLM,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedModel,
    T5ForConditionalGeneration,
    T5GemmaForConditionalGeneration,
)

from defemb_callbacks import DefinitionEMBConfig, build_definition_embeddings, define_new_tokens
from defemb_callbacks.definitions import Definition, Lexicon, load_definitions
from defemb_callbacks.new_tokens.define import new_token_embeddings, plan_new_tokens, write_new_tokens
from defemb_callbacks.new_tokens.definition_rows import rows_from_definitions
from defemb_callbacks.new_tokens.terms import Term
from defemb_callbacks.new_tokens.token_plan import NO_TOKEN
from defemb_callbacks.reconstruction import last_states
from defemb_callbacks.reconstruction.prompts import definition_prompt, mask_text
from defemb_callbacks.vocabulary.frequency import frequency_groups, frequency_rank
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from defemb_callbacks.weights.config_record import read_new_tokens_record, read_record
from defemb_callbacks.weights.rows import embedding_weight, read_table, tables_of
from tiny import (
    byte_bpe_tokenizer,
    gemma_tokenizer,
    tiny_bert,
    tiny_glossary,
    tiny_model,
    unigram_tokenizer,
    wordpiece_tokenizer,
)

TERMS = {"lynx": "a wild cat with long ears", "tokamak": ["a machine for hot gas", "an engine"], "cello": None}


def bert(tokenizer: Any) -> PreTrainedModel:
    model = tiny_bert(tokenizer, BertForMaskedLM)
    with torch.no_grad():  # as trained: frequent tokens are likelier
        model.get_output_embeddings().bias.copy_(-torch.arange(float(len(tokenizer))))
    return model


def of(model_class: type[PreTrainedModel], **config: Any) -> Callable[[Any], PreTrainedModel]:
    return lambda tokenizer: tiny_model(model_class, tokenizer, **config)


FAMILIES: dict[str, tuple[Callable[[], Any], Callable[[Any], PreTrainedModel], list[str]]] = {
    "BERT": (wordpiece_tokenizer, bert, ["input"]),
    "ELECTRA": (wordpiece_tokenizer, of(ElectraForMaskedLM), ["input"]),
    "BART": (byte_bpe_tokenizer, of(BartForConditionalGeneration), ["input"]),
    "T5": (unigram_tokenizer, of(T5ForConditionalGeneration), ["input"]),
    "T5Gemma": (gemma_tokenizer, of(T5GemmaForConditionalGeneration), ["input", "decoder"]),
    "GPT-2": (byte_bpe_tokenizer, of(GPT2LMHeadModel), ["input"]),
    "Llama": (gemma_tokenizer, of(LlamaForCausalLM), ["input", "output"]),
}
# transformers 5.0 resizes the output table of T5Gemma, but not the decoder's, to which it is tied.
T5GEMMA_GROWS = "decoder" in inspect.getsource(T5GemmaForConditionalGeneration.set_output_embeddings)


@pytest.fixture
def tokenizer() -> Any:
    return wordpiece_tokenizer()


@pytest.fixture
def model(tokenizer: Any) -> PreTrainedModel:
    return tiny_bert(tokenizer)


def tables(model: PreTrainedModel) -> dict[str, Tensor]:
    return {table: read_table(model, table) for table in tables_of(model)}


def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_every_table_grows_is_saved_and_loaded(family: str, tmp_path: Path):
    make_tokenizer, make_model, expected_tables = FAMILIES[family]
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    before, size = tables(model), len(tokenizer)
    assert list(before) == expected_tables
    if family == "T5Gemma" and not T5GEMMA_GROWS:
        with pytest.raises(ValueError, match="The tables of T5GemmaForConditionalGeneration cannot grow"):
            define_new_tokens(model, tokenizer, TERMS, tiny_glossary())
        assert all(torch.equal(rows, before[table]) for table, rows in tables(model).items())
        return
    report = define_new_tokens(model, tokenizer, TERMS, tiny_glossary())

    new = [index for term in report.terms for index in term.tokens.values()]
    assert len(tokenizer) == size + len(new)
    after = tables(model)
    assert list(after) == expected_tables  # what was tied is
    for table, rows in after.items():
        assert torch.equal(rows[:size], before[table][:size])
        assert rows[new].norm(dim=1).min() > 0.1 * before[table].norm(dim=1).median()
    if "output" in after:
        assert not torch.allclose(after["input"][new], after["output"][new])

    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "the lynx sees the tokamak, a cello and a lynx"
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    assert set(ids[0].tolist()) & set(new)
    assert torch.equal(torch.tensor([again(text)["input_ids"]]), ids)
    assert torch.equal(logits(loaded, ids), logits(model.eval(), ids))
    assert all(torch.equal(rows, after[table]) for table, rows in tables(loaded).items())
    assert loaded.config.vocab_size == model.config.vocab_size
    assert read_new_tokens_record(loaded) == read_new_tokens_record(model)


def test_a_decoder_reads_two_definitions_of_a_term(tokenizer):
    """It has read no more of the other words."""
    rows = []
    senses = ["a wild cat with long ears", "a small animal", "a bird of the night", "a tool with a sharp edge"]
    for number in (1, 2, 3, 4):
        model = tiny_model(GPT2LMHeadModel, tokenizer)
        config = DefinitionEMBConfig(precision="float32")
        define_new_tokens(model, copy.deepcopy(tokenizer), {"lynx": senses[:number]}, tiny_glossary(), config)
        rows.append(read_table(model)[-1])
    assert not torch.equal(rows[0], rows[1])
    assert torch.equal(rows[1], rows[2])
    assert torch.equal(rows[1], rows[3])


def test_a_row_equals_a_manual_computation(tokenizer, model):
    """Features, map, mixture and length, computed step by step."""
    config = DefinitionEMBConfig(features=["mean"], precision="float32")
    built = build_definition_embeddings(model, tokenizer, tiny_glossary(), config)
    table, vocabulary = read_table(model), read_vocabulary(tokenizer)
    gloss = "a wild cat with long ears"
    prompt = definition_prompt(Definition("lynx", gloss), "lynx", mask_text(tokenizer))
    pieces = tokenizer("lynx", add_special_tokens=False)["input_ids"]
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    with torch.no_grad():
        features = last_states(model, ids)[0, 1:-1].mean(dim=0).double()
    weights = built.feature_map.double()
    row = (features @ weights[:-1] + weights[-1]).float()

    report = define_new_tokens(model, tokenizer, {"lynx": gloss}, tiny_glossary(), config)
    mixture = report.info["new_tokens"]["input"]
    groups = frequency_groups(frequency_rank(vocabulary))
    centre = table[groups["all"]].mean(dim=0)
    unit = torch.nn.functional.normalize
    mixed = mixture["weight"] * unit(row - centre, dim=0)
    mixed += (1 - mixture["weight"]) * unit(table[pieces].mean(dim=0) - centre, dim=0)
    length = (table[groups["rare"]] - centre).norm(dim=1).median()
    torch.testing.assert_close(read_table(model)[-1], centre + length * unit(mixed, dim=0), atol=1e-4, rtol=1e-4)
    assert report.terms[0].weight == mixture["weight"]


def test_a_term_without_a_definition_is_the_mean_of_its_sub_tokens(tokenizer, model):
    table = read_table(model)
    report = define_new_tokens(model, tokenizer, ["zyx"], tiny_glossary())
    pieces = tokenizer.convert_tokens_to_ids(["z", "##y", "##x"])
    centre = table[frequency_groups(frequency_rank(read_vocabulary(wordpiece_tokenizer())))["all"]].mean(dim=0)
    made, expected = read_table(model)[-1] - centre, table[pieces].mean(dim=0) - centre
    assert torch.cosine_similarity(made, expected, dim=0) == pytest.approx(1.0, abs=1e-5)
    assert report.terms[0].weight == 0
    assert report.terms[0].composition == "100% sub-tokens"


def test_rows_have_the_length_of_the_expected_group(tokenizer, model):
    weight = embedding_weight(model)
    groups = frequency_groups(frequency_rank(read_vocabulary(tokenizer)))
    with torch.no_grad():
        weight[groups["frequent"]] *= 3
    table = read_table(model)
    centre = table[groups["all"]].mean(dim=0)
    for group in ("frequent", "rare"):
        one, its = copy.deepcopy(model), wordpiece_tokenizer()
        define_new_tokens(one, its, {"lynx": "a wild cat"}, tiny_glossary(), DefinitionEMBConfig(new_token_group=group))
        expected = (table[groups[group]] - centre).norm(dim=1).median()
        assert (read_table(one)[-1] - centre).norm() == pytest.approx(float(expected), rel=1e-4)


def test_an_existing_token_is_rebuilt(tokenizer, model):
    before, index = read_table(model), tokenizer.convert_tokens_to_ids("bridge")
    report = define_new_tokens(model, tokenizer, {"bridge": "a game of cards"}, tiny_glossary())
    after = read_table(model)
    assert after.shape == before.shape
    assert (after != before).any(dim=1).nonzero().flatten().tolist() == [index]
    assert after[index].norm() == pytest.approx(float(before[index].norm()), rel=1e-5)
    assert not report.terms[0].is_new
    assert 0.35 < report.terms[0].weight < 0.7
    replaced = tiny_bert(tokenizer)
    define_new_tokens(
        replaced, tokenizer, {"bridge": "a game"}, tiny_glossary(), DefinitionEMBConfig(strategy="replace")
    )
    assert torch.cosine_similarity(read_table(replaced)[index], before[index], dim=0) < 0.9


def test_rows_for_padding_are_used_before_the_table_grows(tokenizer):
    model = tiny_bert(tokenizer, vocab_size=len(tokenizer) + 2)
    size = len(embedding_weight(model))
    define_new_tokens(model, tokenizer, {"lynx": "a wild cat"}, tiny_glossary())
    assert len(embedding_weight(model)) == size
    define_new_tokens(model, tokenizer, {"ocelot": "a wild cat", "puma": "a large cat"}, tiny_glossary())
    assert len(embedding_weight(model)) == size + 1 == len(tokenizer)


def test_the_bias_of_new_logits_is_that_of_rare_tokens(tokenizer):
    model = bert(tokenizer)
    rare = frequency_groups(frequency_rank(read_vocabulary(tokenizer)))["rare"]
    expected = model.get_output_embeddings().bias[rare].median()
    define_new_tokens(model, tokenizer, {"lynx": "a wild cat"}, tiny_glossary())
    assert model.get_output_embeddings().bias[-1] == expected


def test_synonyms_of_a_lexicon_and_a_dict_are_used(tokenizer, model):
    rich = Lexicon.from_definitions([Definition("lynx", "a wild cat", synonyms=("tiger",))], name="rich")
    rows, noted = [], []
    for terms in ({"lynx": "a wild cat"}, rich, {"lynx": {"definition": "a wild cat", "synonyms": ["tiger"]}}):
        one = copy.deepcopy(model)
        define_new_tokens(one, wordpiece_tokenizer(), terms, tiny_glossary())
        rows.append(read_table(one)[-1])
        noted.append(read_new_tokens_record(one))
    assert not torch.allclose(rows[0], rows[1])
    assert torch.equal(rows[1], rows[2])
    assert noted[0] != noted[1] == noted[2]  # a model tells whether its row was made with them


def test_the_report_as_text_and_as_a_dict(tokenizer, model):
    report = define_new_tokens(model, tokenizer, {**TERMS, "cat": "a feline", "the": None}, tiny_glossary())
    shown = str(report)
    assert shown.startswith("Added 3 tokens for 3 terms; 1 terms already were tokens.")
    assert "2 definitions" in shown
    assert "l ##y ##n ##x" in shown
    assert "Without a definition: 1" in shown
    assert report.rebuilt == 4
    assert report.to_dict()["terms"][0]["term"] == "lynx"
    assert report.groups["all"].tokens == len(tokenizer) - 9  # special and unused ones
    many = {f"zz{'x' * n}": "a thing" for n in range(1, 15)}
    other = wordpiece_tokenizer()
    assert "… and 4 more" in str(define_new_tokens(tiny_bert(other), other, many, tiny_glossary()))


def test_the_report_contains_metrics_before_and_after(tokenizer, model):
    report = define_new_tokens(model, tokenizer, TERMS, tiny_glossary())
    assert report.before["defemb/norm/all"] != report.after["defemb/norm/all"]
    assert set(read_new_tokens_record(model)) == set(TERMS)
    assert read_record(model) is None  # a rebuild is still to come


# Learned


@pytest.mark.parametrize("lora", [None, 4])
def test_a_trained_constructor_predicts_new_words(tokenizer, model, lora, own_cache):
    if lora:
        pytest.importorskip("peft")
    constructor = {"held_out": 0.2, "lora_r": lora, "training": {"max_steps": 3}}
    config = DefinitionEMBConfig(method="learned", constructor=constructor, definitions_per_token=1)
    same, lexicon = unchanged(model, tokenizer), load_definitions(tiny_glossary())
    plan = plan_new_tokens(tokenizer, {**tiny_glossary(), "lynx": "a wild cat"}, lexicon, config)
    (built,) = new_token_embeddings(model, plan, lexicon, config).values()
    terms = [token.term for token in plan.tokens if not token.is_new]
    rows = rows_from_definitions(model, tokenizer, terms, built, config, lexicon)
    places = {index: place for place, index in enumerate(built.ids.tolist())}
    known = [places[token.word] for token in plan.tokens if not token.is_new]
    # What the kept constructor makes of the words that it was built for is what it made then.
    torch.testing.assert_close(rows, built.rows[known], atol=1e-4, rtol=1e-4)
    assert same()
    assert all(weight.requires_grad for weight in model.parameters())
    report = define_new_tokens(model, tokenizer, {"lynx": "a wild cat"}, tiny_glossary(), config)
    assert report.info["new_tokens"]["input"]["words"] == built.info["held_out"]
    assert report.info["method"] == "learned"


def test_each_dictionary_has_its_own_constructor(tokenizer, model):
    config = DefinitionEMBConfig(method="learned", constructor={"training": {"max_steps": 2}}, definitions_per_token=1)
    one, other = tiny_glossary(), {word: gloss[::-1] for word, gloss in tiny_glossary().items()}
    rows = []
    for definitions in (one, other, one):
        made, its = copy.deepcopy(model), wordpiece_tokenizer()
        define_new_tokens(made, its, {"lynx": "a wild cat"}, definitions, config)
        rows.append(read_table(made)[-1])
    assert torch.equal(rows[0], rows[2])
    assert not torch.allclose(rows[0], rows[1])


def test_embeddings_without_a_map_or_constructor_raise(tokenizer, model, tmp_path):
    config, lexicon = DefinitionEMBConfig(), load_definitions(tiny_glossary())
    lynx = [Term("lynx", (Definition("lynx", "a cat"),))]
    old = replace(build_definition_embeddings(model, tokenizer, tiny_glossary()), feature_map=None)
    with pytest.raises(ValueError, match=r"no map for new words.*Build them again"):
        rows_from_definitions(model, tokenizer, lynx, old, config, lexicon)
    learned = replace(old, info={"method": "learned"})
    nowhere = DefinitionEMBConfig(method="learned", constructor={"save_to": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match="no trained constructor"):
        rows_from_definitions(model, tokenizer, lynx, learned, nowhere, lexicon)


# Errors leave everything unchanged


def unchanged(model: PreTrainedModel, tokenizer: Any) -> Callable[[], bool]:
    state, size = copy.deepcopy(model.state_dict()), len(tokenizer)
    return lambda: (
        len(tokenizer) == size and all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    )


def test_another_tokenizer_raises(model):
    with pytest.raises(ValueError, match="embedding table has only"):
        define_new_tokens(model, byte_bpe_tokenizer(), TERMS, tiny_glossary())


def test_an_adapted_model_raises(tokenizer, model):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"]))
    with pytest.raises(ValueError, match=r"PEFT model cannot grow\. Define new tokens in the base model first"):
        define_new_tokens(adapted, tokenizer, TERMS, tiny_glossary())


def test_a_wrapped_model_raises(tokenizer, model):
    with pytest.raises(ValueError, match="wrapped in DataParallel"):
        define_new_tokens(nn.DataParallel(model), tokenizer, TERMS, tiny_glossary())


def test_a_read_only_model_raises(tokenizer):
    with torch.inference_mode():
        model = tiny_bert(tokenizer, BertForMaskedLM)
    with pytest.raises(ValueError, match=r"read-only.*inference_mode"):
        define_new_tokens(model, tokenizer, TERMS, tiny_glossary())


def test_a_quantized_output_table_raises(tokenizer):
    model = tiny_bert(tokenizer, BertForMaskedLM, tie_word_embeddings=False)
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match=r"output embeddings cannot be written \(torch.int8\)"):
        define_new_tokens(model, tokenizer, TERMS, tiny_glossary())


def test_an_output_table_of_another_length_raises(tokenizer):
    model = tiny_bert(tokenizer, BertForMaskedLM, tie_word_embeddings=False)
    model.get_output_embeddings().weight = nn.Parameter(torch.zeros(7, 32))
    with pytest.raises(ValueError, match="The output table has 7 rows, but the input table has"):
        define_new_tokens(model, tokenizer, TERMS, tiny_glossary())


@pytest.mark.parametrize(
    ("terms", "match"), [({"lynx": ""}, "empty"), ({"[MASK]": "a hole"}, "special token"), ({"a\tb": "x"}, "control")]
)
def test_invalid_terms_change_nothing(tokenizer, model, terms, match):
    same = unchanged(model, tokenizer)
    with pytest.raises(ValueError, match=match):
        define_new_tokens(model, tokenizer, {"ocelot": "a wild cat", **terms}, tiny_glossary())
    assert same()


@pytest.mark.parametrize("where", ["write_bias", "new_tokens_report"])
@pytest.mark.parametrize("padded", [0, 2])
def test_a_failure_while_writing_restores_everything(tokenizer, monkeypatch, where, padded):
    model = tiny_bert(tokenizer, BertForMaskedLM, vocab_size=len(tokenizer) + padded)
    same = unchanged(model, tokenizer)

    def fail(*_: Any) -> None:
        raise MemoryError("no memory is left")

    monkeypatch.setattr(f"defemb_callbacks.new_tokens.define.{where}", fail)
    with pytest.raises(MemoryError, match="no memory"):
        define_new_tokens(model, tokenizer, {**TERMS, "bridge": "a game of cards"}, tiny_glossary())
    assert same()
    assert read_new_tokens_record(model) is None


def test_a_sentence_transformer_raises_with_the_cure(tokenizer, model):
    class Pooled(nn.Module):
        transformers_model = model

    with pytest.raises(ValueError, match=r"Pass `model\.transformers_model`"):
        define_new_tokens(Pooled(), tokenizer, TERMS, tiny_glossary())


# Terms that already are tokens


def test_a_word_piece_with_the_same_spelling_is_unchanged():
    tokenizer = byte_bpe_tokenizer()
    model = tiny_model(GPT2LMHeadModel, tokenizer)
    piece = tokenizer.convert_tokens_to_ids("um")
    assert piece != tokenizer.unk_token_id
    before = read_table(model)[piece]
    report = define_new_tokens(model, tokenizer, {"um": "a sound of doubt"}, tiny_glossary())
    assert list(report.terms[0].tokens) == [" um"]
    assert torch.equal(read_table(model)[piece], before)
    assert report.terms[0].tokens[" um"] in tokenizer("the um is")["input_ids"]


@pytest.mark.parametrize("family", ["GPT-2", "T5"])
def test_both_tokens_of_a_term_are_rebuilt(family: str):
    make_tokenizer, make_model, _ = FAMILIES[family]
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    first = define_new_tokens(model, tokenizer, {"lynx": "a wild cat"}, tiny_glossary()).terms[0]
    rows = read_table(model)
    again = define_new_tokens(model, tokenizer, {"lynx": "a machine for hot gas"}, tiny_glossary()).terms[0]
    assert again.tokens == first.tokens
    assert len(again.tokens) == 2
    assert not again.is_new
    assert (read_table(model) != rows).any(dim=1).nonzero().flatten().tolist() == sorted(again.tokens.values())


def test_the_row_without_a_leading_space_differs_by_the_mean_offset_of_such_pairs():
    tokenizer = byte_bpe_tokenizer()
    model = tiny_model(GPT2LMHeadModel, tokenizer)
    vocabulary, weight = read_vocabulary(tokenizer), embedding_weight(model)
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    pairs = [
        (index, ids[word])
        for index, word in enumerate(vocabulary.words)
        if word in ids and word != vocabulary.tokens[index]
    ]
    assert len(pairs) >= 30
    offset = torch.linspace(-1.0, 2.0, weight.shape[1])
    with torch.no_grad():
        for spaced, bare in pairs:
            weight[bare] = weight[spaced] + offset
    (term,) = define_new_tokens(model, tokenizer, {"lynx": "a wild cat"}, tiny_glossary()).terms
    assert list(term.tokens) == [" lynx", "lynx"]
    spaced, bare = term.tokens.values()
    torch.testing.assert_close(read_table(model)[bare], read_table(model)[spaced] + offset)


def test_terms_that_cannot_be_tokens_are_reported():
    tokenizer = unigram_tokenizer()
    model = tiny_model(T5ForConditionalGeneration, tokenizer)
    same = unchanged(model, tokenizer)
    report = define_new_tokens(model, tokenizer, {"car t cell": "a T cell"}, tiny_glossary())
    assert report.skipped == {NO_TOKEN: ("car t cell",)}
    assert report.rebuilt == 0
    assert same()


def test_each_table_has_its_own_words(tokenizer):
    """Given embeddings may cover fewer words than those built for another table."""
    model = tiny_model(LlamaForCausalLM, gemma_tokenizer())
    its = gemma_tokenizer()
    few = dict(list(tiny_glossary().items())[:30])
    lexicon, config = load_definitions(tiny_glossary()), DefinitionEMBConfig()
    plan = plan_new_tokens(its, TERMS, lexicon, config)
    ready = {"input": build_definition_embeddings(model, its, few)}
    report = write_new_tokens(model, plan, new_token_embeddings(model, plan, lexicon, config, ready), lexicon, config)
    words = {table: mixture["words"] for table, mixture in report.info["new_tokens"].items()}
    assert words["input"] < words["output"]
