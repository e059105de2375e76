"""The section of the model card has the contents of the report, and the rest of the card is unchanged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification, Trainer

from defemb_callbacks import DefinitionEMBCallback, DefinitionEMBConfig, RebuildReport
from defemb_callbacks.reporting.model_card import (
    END,
    START,
    TAG,
    model_card_section,
    update_model_card,
)
from defemb_callbacks.reporting.summary import GroupSummary
from defemb_callbacks.weights.config_record import read_record
from tiny import tiny_bert, tiny_dataset, tiny_glossary, training_args, wordpiece_tokenizer

REPORT = RebuildReport(
    groups={"all": GroupSummary(12345, 9000, 6000, 0.25), "rare": GroupSummary(2469, 2000, 1500, 0.4)},
    skipped={"number": ("1990",)},
    before={"defemb/isotropy/all": 0.25, "defemb/isotropy/rare": 0.125, "defemb/norm/all": 1.5},
    after={"defemb/isotropy/all": 0.5, "defemb/isotropy/rare": 0.75, "defemb/norm/all": 1.25},
    info={
        "model": "user/model",
        "method": "ridge",
        "definitions": "wordnet+pets",
        "definitions_read": 48081,
        "r_squared": 0.1574,
        "blend_weight": 0.4,
        "settings": DefinitionEMBConfig(blend=0.4, blend_floor=0.25).to_dict(),
    },
)


def with_info(**changes: Any) -> RebuildReport:
    return replace(REPORT, info=REPORT.info | changes)


def write(folder: Path, content: str) -> bytes:
    (folder / "README.md").write_bytes(content.encode())
    return content.encode()


def parts(card: bytes) -> tuple[bytes, bytes, bytes]:
    """The text before the section, the section, and the text after it."""
    before, rest = card.split(START.encode())
    section, after = rest.split(END.encode())
    return before, section, after


def metadata(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8-sig").split("---")[1])


# The section


def test_it_names_what_was_rebuilt_and_from_what():
    section = model_card_section(REPORT)
    assert section.startswith("## ")
    assert "6,000 of 12,345 token embeddings" in section
    assert "`user/model`" in section
    assert "`wordnet`, `pets` (48,081 definitions)" in section
    assert "`ridge`: the frozen model encoded each definition" in section
    assert "0.157" in section
    assert "@misc{zhang2024reconsidering," in section
    assert "2408.01308" in section
    assert "loads without defemb-callbacks" in section


def test_the_table_has_a_row_for_each_group():
    lines = [line for line in model_card_section(REPORT).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["group", "tokens", "defined", "rebuilt", "new weight", "isotropy", "norm"]
    assert {len(row) for row in cells} == {7}
    assert set("".join(cells[1])) == {":", "-"}
    assert cells[2] == ["all", "12,345", "9,000", "6,000", "0.25", "0.250 → 0.500", "1.50 → 1.25"]
    assert cells[3] == ["rare", "2,469", "2,000", "1,500", "0.40", "0.125 → 0.750", ""]


def test_metrics_are_explained_where_they_are_shown():
    assert "*isotropy*: " in model_card_section(REPORT)
    assert "*relation AUC*: " not in model_card_section(REPORT)
    assert "just before → just after" not in model_card_section(replace(REPORT, before={}, after={}))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "the weight of the new vector grows with the token's rarity, up to 0.40"),
        ({"strategy": "replace"}, "`replace`: each row is the new vector, scaled to the typical length"),
        ({"strategy": "replace", "rescale": False, "alpha": 0.5}, "new vector; only the least frequent 50% of"),
        ({"only_training_tokens": True}, "; only tokens of the training data"),
    ],
)
def test_the_strategy_is_shown_with_its_settings(settings: dict[str, Any], expected: str):
    report = with_info(settings=REPORT.info["settings"] | settings)
    assert expected in model_card_section(report)
    assert [f"; {word}" in model_card_section(report) for word in ("only the least", "only tokens")] == [
        "alpha" in settings,
        "only_training_tokens" in settings,
    ]


@pytest.mark.parametrize(
    ("definitions", "noted"),
    [("wordnet", True), ("pets+wordnet-2", True), ("pets", False), ("mywordnet", False), ("", False)],
)
def test_the_license_note_is_added_if_wordnet_was_used(definitions: str, noted: bool):
    assert ("WordNet®" in model_card_section(with_info(definitions=definitions))) == noted


def test_names_of_folders_are_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("outputs", "model").mkdir(parents=True)
    for name in (str(tmp_path), "outputs/model", "./model", "../model", ""):
        section = model_card_section(with_info(model=name))
        assert "Embeddings of" not in section
        assert not name or f"`{name}`" not in section


def test_a_minimal_report_gives_a_section_too():
    section = model_card_section(RebuildReport({"all": GroupSummary(3, 2, 2, 0.25)}, {}, {}, {}, {}))
    assert "2 of 3 token embeddings" in section
    assert "- **" not in section


# The card


def test_a_missing_card_is_created(tmp_path: Path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    path = update_model_card(folder, REPORT)
    assert path == folder / "README.md"
    assert metadata(path) == {"library_name": "transformers", "tags": [TAG]}
    card = ModelCard.load(path)
    assert card.text.startswith("\n# my-model\n")
    assert model_card_section(REPORT) in card.text


def test_a_second_call_replaces_the_section(tmp_path: Path):
    write(tmp_path, "# mine\n\nText.\n")
    update_model_card(tmp_path, REPORT)
    first = (tmp_path / "README.md").read_bytes()
    assert update_model_card(tmp_path, REPORT).read_bytes() == first
    (tmp_path / "README.md").write_bytes(first + b"\n## Later\n\nMore text.\n")
    update_model_card(tmp_path, with_info(definitions="pets"))
    before, section, after = parts((tmp_path / "README.md").read_bytes())
    assert before == parts(first)[0]
    assert b"`pets` (" in section
    assert b"`wordnet`" not in section
    assert after == b"\n\n## Later\n\nMore text.\n"


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
@pytest.mark.parametrize("ending", ["", "\n"])
def test_a_card_with_the_metadata_is_kept_byte_for_byte(tmp_path: Path, line_break: str, ending: str):
    content = (
        "---\nlicense: mit   # as agreed\ntags: [nlp, 'definition-emb']\nlibrary_name: setfit\nlanguage: no\n---\n\n"
        "# Größe  \n\n| a |\n|---|\n| 1 |" + ending
    ).replace("\n", line_break)
    before = write(tmp_path, content)
    card = update_model_card(tmp_path, REPORT).read_bytes()
    assert card.startswith(before)
    assert card[len(before) :].replace(b"\r\n", b"\n").startswith(b"\n" * (2 - len(ending)) + START.encode())
    assert card.count(b"\n") == card.count(line_break.encode())


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", {"tags": [TAG], "library_name": "transformers"}),
        ("---\n\n---\n", {"tags": [TAG], "library_name": "transformers"}),
        ("---\nlicense: mit\n---\n", {"license": "mit", "tags": [TAG], "library_name": "transformers"}),
        ("---\ntags: nlp\nlibrary_name: peft\n---\n", {"tags": ["nlp", TAG], "library_name": "peft"}),
        (f"---\ntags:\n- {TAG}\n---\n", {"tags": [TAG], "library_name": "transformers"}),
        (
            "---\nlanguage: 'no'\nmodel-index:\n- name: m\n  results: []\ntags:\n- b\n- a\nmine: {x: 1}\n---\n",
            {
                "language": "no",
                "model-index": [{"name": "m", "results": []}],
                "tags": ["b", "a", TAG],
                "mine": {"x": 1},
                "library_name": "transformers",
            },
        ),
    ],
)
def test_missing_metadata_are_added_and_the_others_kept(tmp_path: Path, header: str, expected: dict[str, Any]):
    write(tmp_path, header + "\n# Größe\n")
    path = update_model_card(tmp_path, REPORT)
    assert metadata(path) == expected
    text = path.read_text(encoding="utf-8").split("---\n", 2)[2]
    assert text.startswith(f"\n# Größe\n\n{START}\n")


def test_a_byte_order_mark_does_not_hide_the_metadata(tmp_path: Path):
    write(tmp_path, "\ufeff---\nlicense: mit\n---\n")
    assert metadata(update_model_card(tmp_path, REPORT))["license"] == "mit"


def test_the_card_of_a_real_checkpoint_is_kept(tmp_path: Path, minilm_dir: Path):
    original = (minilm_dir / "README.md").read_text(encoding="utf-8")
    write(tmp_path, original)
    path = update_model_card(tmp_path, REPORT)
    old, new = ModelCard(original), ModelCard.load(path)
    assert new.text.startswith(old.text)
    assert new.data.to_dict() == old.data.to_dict() | {"tags": [*old.data.tags, TAG]}
    assert new.data.library_name == "sentence-transformers"


@pytest.mark.parametrize(
    "text", [f"{START} text", f"text {END}", f"{END} {START}", f"{START} {END} {START} {END}"], ids=str
)
def test_half_a_section_is_an_error_and_nothing_is_written(tmp_path: Path, text: str):
    before = write(tmp_path, text)
    with pytest.raises(
        ValueError, match=r"README\.md cannot be updated: it must contain <!-- definition-emb: start -->"
    ):
        update_model_card(tmp_path, REPORT)
    assert (tmp_path / "README.md").read_bytes() == before


def test_unreadable_metadata_are_an_error_and_nothing_is_written(tmp_path: Path):
    before = write(tmp_path, "---\n- a list\n---\n")
    with pytest.raises(ValueError, match=r"README\.md cannot be updated: .*should be a dict"):
        update_model_card(tmp_path, REPORT)
    assert (tmp_path / "README.md").read_bytes() == before


def test_a_missing_folder_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"The folder .*nowhere.* does not exist. Save the model there first"):
        update_model_card(tmp_path / "nowhere", REPORT)


# The Trainer


def test_the_section_is_added_to_the_card_of_the_trainer(tmp_path: Path):
    """As the docstring advises: the Trainer's own card first, because it overwrites any other."""
    tokenizer = wordpiece_tokenizer()
    callback = DefinitionEMBCallback(tiny_glossary(), plots=False, cache_dir=str(tmp_path / "cache"))
    trainer = Trainer(
        tiny_bert(tokenizer, BertForSequenceClassification),
        training_args(tmp_path / "out"),
        train_dataset=tiny_dataset(tokenizer),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.train()
    trainer.save_model()
    update_model_card(tmp_path / "out", callback.report)
    trainer.create_model_card()
    path = tmp_path / "out" / "README.md"
    own = path.read_text(encoding="utf-8")
    assert START not in own
    update_model_card(tmp_path / "out", callback.report)
    card = path.read_text(encoding="utf-8")
    assert card.split("---\n", 2)[2].startswith(own.split("---\n", 2)[2])
    assert model_card_section(callback.report) in card
    assert f"{callback.report.rebuilt:,} of {callback.report.groups['all'].tokens:,} token embeddings" in card
    own_metadata = yaml.safe_load(own.split("---\n")[1])
    assert metadata(path) == own_metadata | {"tags": [*own_metadata["tags"], TAG]}
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert read_record(loaded) == read_record(trainer.model)
