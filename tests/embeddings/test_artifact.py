"""DefinitionEmbeddings: saving, the hub, validation, and writing rows into a model."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, hub_mixin
from torch import Tensor
from transformers import BertForMaskedLM, PreTrainedModel

from defemb_callbacks import DefinitionEMBConfig, DefinitionEmbeddings
from defemb_callbacks.cache import fingerprint
from defemb_callbacks.embeddings.blending import DirectionalBlend, rescale_rows, written_rows
from defemb_callbacks.vocabulary.frequency import frequency_groups, frequency_rank, rarity
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from defemb_callbacks.weights.rows import embedding_weight, read_table
from tiny import tiny_bert, tiny_glossary, wordpiece_tokenizer

TENSORS, DESCRIPTION = "definition_embeddings.safetensors", "definition_embeddings.json"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return wordpiece_tokenizer()


@pytest.fixture
def model(tokenizer: Any) -> PreTrainedModel:
    return tiny_bert(tokenizer)


@pytest.fixture
def embeddings(tokenizer: Any) -> DefinitionEmbeddings:
    """Random vectors for the words of the tiny glossary."""
    ids = torch.tensor(sorted(tokenizer.convert_tokens_to_ids(word) for word in tiny_glossary()))
    rows = torch.randn(len(ids), 32, generator=torch.Generator().manual_seed(1)) / 2 + 0.1
    vocabulary = read_vocabulary(tokenizer)
    return DefinitionEmbeddings(ids, rows, vocabulary, torch.stack([ids[:-1], ids[1:]], dim=1), {"model": "tïny"})


def snapshot(model: PreTrainedModel) -> tuple[dict[str, Tensor], str]:
    return copy.deepcopy(dict(model.state_dict())), model.config.to_json_string()


def assert_unchanged(model: PreTrainedModel, before: tuple[dict[str, Tensor], str]) -> None:
    torch.testing.assert_close(dict(model.state_dict()), before[0], rtol=0, atol=0)
    assert model.config.to_json_string() == before[1]


# Saving


def assert_same(one: DefinitionEmbeddings, other: DefinitionEmbeddings) -> None:
    for name in ("ids", "rows", "pairs"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert one.vocabulary == other.vocabulary
    assert one.info == other.info
    assert one.fingerprint == other.fingerprint


def test_save_and_load_round_trip(embeddings, tmp_path) -> None:
    embeddings.save_pretrained(tmp_path / "new" / "folder")
    assert_same(DefinitionEmbeddings.from_pretrained(tmp_path / "new" / "folder"), embeddings)
    assert_same(DefinitionEmbeddings.from_pretrained(str(tmp_path / "new" / "folder")), embeddings)


def test_different_rows_have_different_fingerprints(embeddings) -> None:
    rows = embeddings.rows.clone()
    rows[0, 0] += 1e-3
    other = DefinitionEmbeddings(embeddings.ids, rows, embeddings.vocabulary)
    assert other.fingerprint != embeddings.fingerprint


def _bit_flipped(folder: Path) -> None:
    data = bytearray((folder / TENSORS).read_bytes())
    data[-5] ^= 1
    (folder / TENSORS).write_bytes(data)


def _torn(folder: Path) -> None:
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-100])


def _torn_description(folder: Path) -> None:
    text = (folder / DESCRIPTION).read_text(encoding="utf-8")
    (folder / DESCRIPTION).write_text(text[: len(text) // 2], encoding="utf-8")


def _described(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        path = folder / DESCRIPTION
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")

    return change


def _foreign_tensors(folder: Path) -> None:
    (folder / TENSORS).write_bytes(b"PK\x03\x04 something else")
    _described(tensors=fingerprint(folder / TENSORS))(folder)


def _list_for_description(folder: Path) -> None:
    (folder / DESCRIPTION).write_text("[1, 2]")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_bit_flipped, "the checksum of definition_embeddings.safetensors is wrong"),
        (_torn, "the checksum of definition_embeddings.safetensors is wrong"),
        (_torn_description, "cannot be used"),
        (_foreign_tensors, "cannot be used"),
        (_list_for_description, "cannot be used"),
        (_described(format=2), "format 2 is newer than 1. Update defemb-callbacks"),
        (_described(tokens=["only"], words=["only"], reasons=[None]), "do not fit a table of 1 rows"),
    ],
)
def test_damaged_files_raise(embeddings, tmp_path, damage, message) -> None:
    embeddings.save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        DefinitionEmbeddings.from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_missing_files_are_named(embeddings, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        DefinitionEmbeddings.from_pretrained(tmp_path / "missing")
    embeddings.save_pretrained(tmp_path)
    (tmp_path / TENSORS).unlink()
    with pytest.raises(FileNotFoundError, match=r"contains no definition embeddings \(definition_embeddings.json and"):
        DefinitionEmbeddings.from_pretrained(tmp_path)


def test_hub_round_trip(embeddings, tmp_path, monkeypatch) -> None:
    hub = tmp_path / "hub"
    calls: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None:
            calls["token"] = token

        def create_repo(self, repo_id: str, **settings: Any) -> Any:
            calls["create"] = settings
            return type("Url", (), {"repo_id": f"user/{repo_id}"})()

        def upload_folder(self, *, repo_id: str, folder_path: Path, **settings: Any) -> str:
            shutil.copytree(folder_path, hub / repo_id.replace("/", "--"))
            return f"https://hub/{repo_id}/commit/1"

    def download(repo_id: str, *, revision: Any, token: Any, allow_patterns: list[str]) -> str:
        calls["download"] = (revision, token, sorted(allow_patterns))
        return str(hub / repo_id.replace("/", "--"))

    hub.mkdir()
    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    monkeypatch.setattr("defemb_callbacks.hub.snapshot_download", download)
    assert embeddings.push_to_hub("rows", private=True, token="secret") == "https://hub/user/rows/commit/1"
    assert calls["token"] == "secret"
    assert calls["create"] == {"private": True, "exist_ok": True}
    assert sorted(path.name for path in (hub / "user--rows").iterdir()) == ["README.md", DESCRIPTION, TENSORS]
    assert_same(DefinitionEmbeddings.from_pretrained("user/rows", revision="v1", token="secret"), embeddings)
    assert calls["download"] == ("v1", "secret", [DESCRIPTION, TENSORS])


def test_the_model_card_on_the_hub_shows_how_to_load_and_what_was_built(embeddings) -> None:
    card = embeddings.generate_model_card()
    assert card.data.library_name == "defemb_callbacks"
    assert card.data.tags == ["definition-emb", "model_hub_mixin"]
    assert "Embeddings of width 32 for 66 of the 476 tokens" in card.text
    assert "| model | `tïny` |" in card.text
    assert 'DefinitionEmbeddings.from_pretrained("user/name")' in card.text
    assert ModelCard(card.content).content == card.content


def test_the_model_card_does_not_publish_a_local_path(embeddings, tmp_path) -> None:
    local = dataclasses.replace(embeddings, info={"model": str(tmp_path), "method": "ridge"})
    card = local.generate_model_card()
    assert str(tmp_path) not in card.text
    assert "| method | `ridge` |" in card.text


def test_saving_beside_a_model_keeps_its_files(embeddings, tmp_path) -> None:
    for name in ("config.json", "README.md"):
        (tmp_path / name).write_text("the model's")
    assert embeddings.save_pretrained(tmp_path) is None
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "README.md", DESCRIPTION, TENSORS}
    assert (tmp_path / "config.json").read_text() == (tmp_path / "README.md").read_text() == "the model's"


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": torch.tensor([1, 476])}, r"Token ids from 1 to 476 do not fit a table of 476 rows"),
        ({"ids": torch.tensor([-1, 5])}, r"Token ids from -1 to 5 do not fit"),
        ({"ids": torch.tensor([5, 5])}, "but 5 occurs more than once"),
        ({"ids": torch.tensor([5])}, r"The rows have shape \(2, 32\)"),
        ({"rows": torch.full((2, 32), float("nan"))}, "NaN or infinity, the first one for token 3"),
        ({"rows": torch.tensor([[0.0] * 32, [float("inf")] * 32])}, "NaN or infinity, the first one for token 4"),
        ({"rows": torch.zeros(2, 32, dtype=torch.float64)}, r"`rows` must be \(n, d\) float32, got \(2, 32\)"),
        ({"pairs": torch.tensor([[1, 476]])}, "`pairs` must contain ids from 0 to 475, got ids from 1 to 476"),
        ({"pairs": torch.tensor([1, 2])}, r"`pairs` must be \(m, 2\) int64, got \(2,\)"),
    ],
)
def test_inconsistent_parts_raise(tokenizer, change, message) -> None:
    parts = {"ids": torch.tensor([3, 4]), "rows": torch.zeros(2, 32), "vocabulary": read_vocabulary(tokenizer)}
    DefinitionEmbeddings(**parts)
    with pytest.raises(ValueError, match=message):
        DefinitionEmbeddings(**parts | change)


def test_another_tokenizer_raises_with_the_first_difference(embeddings) -> None:
    vocabulary = embeddings.vocabulary
    embeddings.check_tokenizer(vocabulary)
    tokens = list(vocabulary.tokens)
    tokens[300:302] = reversed(tokens[300:302])
    other = type(vocabulary)(tuple(tokens), vocabulary.words, vocabulary.reasons, True)
    expected = f"its token 300 is '{tokens[301]}', here it is '{tokens[300]}'"
    with pytest.raises(ValueError, match=expected):
        embeddings.check_tokenizer(other)
    longer = type(vocabulary)((*tokens, ""), (*vocabulary.words, None), (*vocabulary.reasons, None), True)
    with pytest.raises(ValueError, match="it has 476 entries, this one 477"):
        embeddings.check_tokenizer(longer)


def _rebuilt(model: PreTrainedModel) -> None:
    model.config.definition_emb = {"fingerprint": "f", "strategy": "blend", "rebuilt": 3}


def _with_nan(model: PreTrainedModel) -> None:
    with torch.no_grad():
        embedding_weight(model)[40, 0] = float("nan")


COUNTS = torch.ones(476, dtype=torch.int64)


@pytest.mark.parametrize(
    ("sizes", "prepare", "settings", "counts", "message"),
    [
        (
            {"hidden_size": 16},
            None,
            {},
            None,
            r"built for a table of shape \(476, 32\), but the model's table has shape \(476, 16\)",
        ),
        (
            {"vocab_size": 480},
            None,
            {},
            None,
            r"built for a table of shape \(476, 32\), but the model's table has shape \(480, 32\)",
        ),
        ({}, _rebuilt, {}, None, "have already been rebuilt .*pass `force=True`"),
        ({}, _with_nan, {}, None, "NaN"),
        ({}, None, {"frequency": "training_data"}, None, "needs the token counts"),
        ({}, None, {"only_training_tokens": True}, None, "`only_training_tokens=True` needs the token counts"),
        ({}, None, {"frequency": "training_data"}, COUNTS[:-1], r"`counts` must have shape .*, got \(475,\)"),
        ({}, None, {"only_training_tokens": True}, COUNTS[:-1], r"`counts` has shape \(475,\)"),
    ],
)
def test_errors_leave_the_model_unchanged(embeddings, tokenizer, sizes, prepare, settings, counts, message):
    model = tiny_bert(tokenizer, **sizes)
    if prepare:
        prepare(model)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        embeddings.apply(model, DefinitionEMBConfig(**settings), counts=counts)
    if prepare is not _with_nan:
        assert_unchanged(model, before)
    assert model.config.to_json_string() == before[1]


def test_a_missing_frequency_file_changes_nothing(embeddings, model, tmp_path) -> None:
    before, counts = snapshot(model), tmp_path / "counts.tsv"
    counts.write_text("the\t5\n")
    config = DefinitionEMBConfig(frequency=str(counts))
    counts.unlink()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        embeddings.apply(model, config)
    assert_unchanged(model, before)


def test_a_peft_model_whose_adapter_lacks_the_rows_warns(embeddings, model, caplog) -> None:
    model.peft_config = {}  # what marks a PeftModel
    embeddings.apply(model)
    assert "save_embedding_layers=True" in caplog.text


def test_a_module_that_is_not_a_transformers_model_raises(embeddings) -> None:
    with pytest.raises(TypeError, match="Linear has no token embeddings"):
        embeddings.apply(torch.nn.Linear(32, 476))


# Applying


def test_the_written_rows_are_those_of_the_config(embeddings, model) -> None:
    before = read_table(model)
    config = DefinitionEMBConfig(blend=0.6, blend_floor=0.5)
    report = embeddings.apply(model, config)
    after = read_table(model)
    rank = frequency_rank(embeddings.vocabulary)
    ids = embeddings.ids
    centre = before[rank >= 0].double().mean(dim=0)
    blend = DirectionalBlend.fit(before[ids], embeddings.rows, centre)
    groups = torch.zeros(len(ids), dtype=torch.int64)
    expected, weights = written_rows(config, blend, before[ids], embeddings.rows, rarity(rank)[ids], groups)
    torch.testing.assert_close(after[ids], expected)
    torch.testing.assert_close(after[ids].norm(dim=1), before[ids].norm(dim=1))
    others = torch.ones(len(before), dtype=torch.bool)
    others[ids] = False
    assert torch.equal(after[others], before[others])
    assert report.groups["all"].weight == pytest.approx(float(weights.mean()))


def test_blend_zero_changes_nothing(embeddings, model) -> None:
    before = read_table(model)
    report = embeddings.apply(model, DefinitionEMBConfig(blend=0.0))
    assert torch.equal(read_table(model), before)
    assert report.before == report.after


def test_replace_without_rescaling_writes_the_exact_rows(embeddings, model) -> None:
    report = embeddings.apply(model, DefinitionEMBConfig(strategy="replace", rescale=False))
    assert torch.equal(read_table(model)[embeddings.ids], embeddings.rows)
    assert report.groups["all"].weight == 1


def test_replace_rescales_by_group(embeddings, model) -> None:
    before = read_table(model)
    embeddings.apply(model, DefinitionEMBConfig(strategy="replace"))
    rank = frequency_rank(embeddings.vocabulary)
    groups = frequency_groups(rank)
    number = torch.zeros(len(rank), dtype=torch.int64)
    for index, name in enumerate(("frequent", "medium", "rare")):
        number[groups[name]] = index
    ids, centre = embeddings.ids, before[rank >= 0].double().mean(dim=0)
    expected = rescale_rows(embeddings.rows, before[ids], number[ids], centre)
    torch.testing.assert_close(read_table(model)[ids], expected)
    assert not torch.allclose(expected, embeddings.rows)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_alpha_takes_the_least_frequent(embeddings, model, alpha) -> None:
    before = read_table(model)
    report = embeddings.apply(model, DefinitionEMBConfig(alpha=alpha))
    count = round(alpha * len(embeddings.ids))
    changed = (read_table(model) != before).any(dim=1).nonzero().flatten()
    # In vocabulary order the least frequent have the highest ids.
    assert torch.equal(changed, embeddings.ids[len(embeddings.ids) - count :])
    assert report.rebuilt == count
    assert len(report.skipped.get("too frequent (alpha)", ())) == len(embeddings.ids) - count


def test_tokens_outside_the_training_data_keep_their_rows(embeddings, model) -> None:
    before = read_table(model)
    counts = torch.zeros(476, dtype=torch.int64)
    counts[embeddings.ids[::2]] = 3
    report = embeddings.apply(model, DefinitionEMBConfig(only_training_tokens=True), counts=counts)
    changed = (read_table(model) != before).any(dim=1).nonzero().flatten()
    assert torch.equal(changed, embeddings.ids[::2])
    assert len(report.skipped["not in the training data"]) == len(embeddings.ids[1::2])


def test_the_report_counts_every_token_once(embeddings, model) -> None:
    report = embeddings.apply(model)
    skipped = [token for tokens in report.skipped.values() for token in tokens]
    assert len(skipped) == len(set(skipped)) == 476 - 66
    assert report.groups["all"].defined == report.rebuilt == 66
    assert sum(report.groups[name].rebuilt for name in ("frequent", "medium", "rare")) == 66
    assert report.skipped["unused entry"] == tuple(f"[unused{i}]" for i in range(4))


def test_force_rebuilds_again(embeddings, model) -> None:
    embeddings.apply(model)
    once = read_table(model)
    first = model.config.definition_emb
    embeddings.apply(model, DefinitionEMBConfig(blend=0.9), force=True)
    assert not torch.equal(read_table(model), once)
    assert model.config.definition_emb["fingerprint"] != first["fingerprint"]


def test_tied_output_and_a_lower_precision(embeddings, tokenizer) -> None:
    model = tiny_bert(tokenizer, BertForMaskedLM, tie_word_embeddings=True).to(torch.bfloat16)
    weight = embedding_weight(model)
    embeddings.apply(model, DefinitionEMBConfig(strategy="replace", rescale=False))
    assert embedding_weight(model) is weight
    assert model.get_output_embeddings().weight is weight
    assert torch.equal(weight[embeddings.ids], embeddings.rows.bfloat16())
