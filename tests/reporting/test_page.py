"""The page: one well-formed, complete and accessible file."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import fields, replace
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from markupsafe import escape
from matplotlib.figure import Figure
from torch import Tensor

from defemb_callbacks import DefinitionEMBConfig
from defemb_callbacks.metrics import measure_table
from defemb_callbacks.metrics.catalog import CATALOG, OUTPUT, metric_of, metrics_in
from defemb_callbacks.metrics.snapshot import TableSnapshot
from defemb_callbacks.reporting.page import PAPER, render_page, stylesheet
from defemb_callbacks.reporting.run_record import RunRecord
from defemb_callbacks.reporting.style import COLOURS, PALETTE, SNAPSHOT_STYLES
from defemb_callbacks.reporting.summary import GroupSummary, RebuildReport
from defemb_callbacks.reporting.svg import inline_svg
from defemb_callbacks.vocabulary.frequency import frequency_groups, frequency_rank
from defemb_callbacks.vocabulary.tokens import Vocabulary

HOSTILE = ("<mask>", "</script>", "<b>", '"quoted"', "a&b", "$x$", "'", "]]>", "{name}", "\u202ebackwards")
NAME = "before <the> rebuild & $all$"


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    words = tuple(f"word{a}{b}" for a, b in itertools.product("abcdefghij", repeat=2))
    tokens = (*words, *HOSTILE)
    return Vocabulary(tokens, tokens, (None,) * len(tokens), uncased=True)


@pytest.fixture(scope="module")
def groups(vocabulary: Vocabulary) -> dict[str, Tensor]:
    return frequency_groups(frequency_rank(vocabulary))


@pytest.fixture(scope="module")
def snapshots(vocabulary: Vocabulary, groups: dict[str, Tensor]) -> dict[str, TableSnapshot]:
    table = torch.randn(len(vocabulary), 8, generator=torch.Generator().manual_seed(0))
    watched = torch.arange(len(vocabulary) - len(HOSTILE), len(vocabulary))
    taken = {}
    for number, name in enumerate((NAME, "at train start", "at train end")):
        moved = table.clone()
        moved[watched] += number
        figures = measure_table(moved, groups, reference=table if number else None)
        taken[name] = TableSnapshot.take(moved, groups, metrics=figures, watched=watched)
    return taken


@pytest.fixture(scope="module")
def history(snapshots: dict[str, TableSnapshot]) -> list[dict[str, Any]]:
    start, end = snapshots["at train start"].metrics, snapshots["at train end"].metrics
    output = {key.replace("defemb/", f"defemb/{OUTPUT}"): value + 1 for key, value in end.items()}
    return [
        {"step": 0, **start},
        {"step": 7, "loss": 1.0, **end},
        {"step": 7, **output},
        {"step": 7, "train_loss": 1.0},
    ]


@pytest.fixture(scope="module")
def report(snapshots: dict[str, TableSnapshot]) -> RebuildReport:
    names = list(snapshots)
    return RebuildReport(
        groups={name: GroupSummary(1_234, 567, 89, 0.25) for name in ("all", "frequent", "medium", "rare")},
        skipped={"number": ("1990", *HOSTILE), "not <in> it": ("x",) * 2_000, "word piece": ()},
        before=snapshots[names[0]].metrics,
        after=snapshots[names[1]].metrics,
        info={
            "definitions": "word<net>",
            "definitions_read": 60_563,
            "r_squared": 0.20283,
            "blend_weight": 0.4,
            "settings": {"strategy": "blend", "blend": 0.4, "group_edges": [0.25, 0.75], "frequency": "<counts>.tsv"},
        },
    )


@pytest.fixture(scope="module")
def record(
    vocabulary: Vocabulary,
    snapshots: dict[str, TableSnapshot],
    history: list[dict[str, Any]],
    report: RebuildReport,
    groups: dict[str, Tensor],
) -> RunRecord:
    return RunRecord(
        title="A <script>alert(1)</script> & its embeddings",
        snapshots=snapshots,
        vocabulary=vocabulary,
        history=history,
        report=report,
        rebuilt=groups["rare"],
        glosses={len(vocabulary) - 1: "the <opposite> of forwards"},
    )


@pytest.fixture(scope="module")
def page(record: RunRecord) -> str:
    return render_page(record)


class Reader(HTMLParser):
    """Parses a page, and fails if an element is not closed."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def reader(page: str) -> Reader:
    return Reader(page)


def svgs(page: str) -> list[ET.Element]:
    return [ET.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)]


def test_the_page_is_well_formed_and_its_pictures_are_xml(page, reader) -> None:
    assert page.startswith("<!DOCTYPE html>")
    assert reader.of("html") == [{"lang": "en"}]
    assert len(svgs(page)) == len(reader.of("svg")) > 10
    assert len(page) < 1_500_000


def test_it_needs_no_other_files(page, reader) -> None:
    allowed = {PAPER}
    for tag, attributes in reader.elements:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href", "style"):
                assert "//" not in (value or "") or value in allowed
    [style] = re.findall(
        r"<style.*?>(.*?)</style>", page, flags=re.DOTALL
    )  # pictures bring none, which would be the page's
    assert "//" not in style
    assert "@import" not in style
    assert "url(" not in style


def test_ids_are_unique_and_every_reference_has_its_target(page, reader) -> None:
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert [name for name, times in Counter(ids).items() if times > 1] == []
    targets = re.findall(r'href="#([^"]+)"', page) + re.findall(r"url\(#([^)]+)\)", page)
    assert len(targets) > 100
    assert set(targets) <= set(ids)


def test_hostile_names_are_shown_as_text(page, reader, record) -> None:
    assert "<script" not in page
    assert reader.of("i") == reader.of("the") == reader.of("net") == []
    assert record.title in reader.text
    assert NAME in reader.text
    assert "word<net>" in reader.text
    assert "the <opposite> of forwards" in reader.text
    assert "not <in> it" in reader.text
    # As a watched word or a neighbour; marks that change the direction of text are isolated.
    for token in HOSTILE:
        assert f"<bdi>{escape(token)}</bdi>" in page


def test_every_figure_of_the_record_is_there_as_it_is_written(page, record) -> None:
    written = Counter(re.findall(r"[-+]?[\d.,]*\d(?:e-\d+)?", Reader(page).text))
    wanted = Counter()
    for taken in record.snapshots.values():
        for key, value in taken.metrics.items():
            wanted[metric_of(key.split("/")[1]).format_value(value)] += 1
    for metric in metrics_in(record.history, OUTPUT):
        assert f">{metric_of(metric).title}</h3>" in page
    for text, times in wanted.items():
        assert written[text] >= times, text
    for text in ("1,234", "567", "89", "0.25", "2,011", "60,563", "0.2028", "0.4"):
        assert written[text], text


def test_each_metric_has_its_meaning_and_direction(reader, record) -> None:
    for metric in metrics_in([taken.metrics for taken in record.snapshots.values()]):
        assert CATALOG[metric].meaning in reader.text
    assert "↑ higher is better" in reader.text
    assert "closer to 0 is better" in reader.text
    assert "neither direction is better" in reader.text


@pytest.mark.parametrize(
    ("metric", "before", "after", "word"),
    [
        ("isotropy", 0.5, 0.6, "better"),
        ("isotropy", 0.6, 0.5, "worse"),
        ("isotropy", 0.5001, 0.5002, "same"),
        ("average_cosine", -0.2, 0.1, "better"),
        ("average_cosine", 0.1, -0.2, "worse"),
        ("average_cosine", 0.1, -0.1, "same"),
        ("norm", 1.0, 2.0, "higher"),
        ("norm", 2.0, 1.0, "lower"),
        ("unheard_of", 2.0, 1.0, "lower"),
    ],
)
def test_a_change_is_judged_by_the_displayed_values(metric, before, after, word) -> None:
    assert metric_of(metric).compare(before, after) == word


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("isotropy", 0.87321, "0.873"),
        ("isotropy", 0.0, "0"),
        ("isotropy", 1e-9, "1.0e-09"),
        ("effective_rank", 1234.5, "1,234"),
        ("norm", 1.005, "1.00"),
        ("average_cosine", -0.0001, "-1.0e-04"),
    ],
)
def test_nonzero_values_are_not_displayed_as_zero(metric, value, text) -> None:
    assert metric_of(metric).format_value(value) == text


def test_verdicts_are_words_and_arrows_and_not_only_colours(page, record) -> None:
    first, start = (record.snapshots[name].metrics["defemb/norm/rare"] for name in (NAME, "at train start"))
    assert first < start
    assert "▲&nbsp;higher</span>" in page
    for kind, arrow_and_word in re.findall(r'<span class="verdict (\w+)">(.*?)</span>', page):
        assert arrow_and_word[0] in "▲▼="
        assert arrow_and_word.endswith(kind)


def test_the_weight_has_two_digits(record) -> None:
    report = replace(record.report, info={**record.report.info, "blend_weight": 0.689211})
    text = Reader(render_page(replace(record, report=report))).text
    assert "up to 0.69." in text


def test_the_summary_comes_first(reader) -> None:
    text = reader.text
    assert (
        "89 of 1,234 token embeddings were rebuilt from the definitions of their words (dictionary: word<net>)" in text
    )
    assert "up to 0.4." in text
    assert "(25% of the vocabulary)" in text
    assert f"In short, “at train end” compared with “{NAME}”:" in text
    assert text.index("Rare tokens:") < text.index("All tokens:")


def test_a_replacement_is_not_described_as_a_rotation(record) -> None:
    info = {"settings": {"strategy": "replace"}}
    text = Reader(render_page(replace(record, report=replace(record.report, info=info)))).text
    assert "Each of these vectors was replaced by one" in text
    assert "turned towards" not in text


def test_kept_tokens_have_their_reason_in_words(reader) -> None:
    assert "2,011 tokens were kept unchanged" in reader.text
    assert "number contains digits" in reader.text


def test_new_neighbours_are_bold(page, record, vocabulary) -> None:
    watched = len(vocabulary) - 3  # "]]>"
    known = {index for index, _ in record.snapshots[NAME].neighbours[watched]}
    new = [index for index, _ in record.snapshots["at train end"].neighbours[watched] if index not in known]
    assert new
    [row] = [row for row in page.split("<tr>") if row.startswith('<th scope="row"><strong><bdi>]]&gt;<')]
    last = row.split("<td>")[-1]
    bold = re.findall(r"<b><bdi>(.*?)</bdi></b>", last)
    assert len(bold) == len(new)
    assert "<b>" not in row.split("<td>")[1]
    cosine = record.snapshots["at train end"].neighbours[watched][0][1]
    assert f"{cosine:.2f}" in last


def test_the_projection_has_a_legend(reader) -> None:
    assert "Filled marks are the rebuilt tokens" in reader.text
    assert f"All panels have the directions of “{NAME}”." in reader.text


def test_settings_are_explained(reader) -> None:
    assert "blend_floor" not in reader.text  # not among this report's settings
    [blend] = [field for field in fields(DefinitionEMBConfig) if field.name == "blend"]
    assert blend.metadata["help"] in reader.text
    assert "0.25, 0.75" in reader.text
    assert "<counts>.tsv" in reader.text


def test_tables_and_pictures_can_be_read_without_seeing_them(page, reader) -> None:
    for attributes in reader.of("svg"):
        assert attributes.get("aria-hidden") == "true" or len(attributes["aria-label"] or "") > 30
    for attributes in reader.of("th"):
        assert attributes["scope"] in ("row", "col")
    regions = [attributes for attributes in reader.of("div") if attributes.get("role") == "region"]
    assert len(regions) == len(reader.of("table")) > 5
    assert all(attributes["aria-label"] and attributes["tabindex"] == "0" for attributes in regions)
    assert len(reader.of("h1")) == len(reader.of("main")) == 1
    [label] = re.findall(r'aria-label="(Isotropy I\(E\) over[^"]*)"', page)[:1]
    assert "steps 0 to 7" in label


def test_text_in_pictures_is_text_of_the_page(page) -> None:
    for svg in svgs(page):
        for text in svg.iter("text"):
            style = dict(part.split(":") for part in text.attrib["style"].split(";"))
            assert "font-family" not in style
            assert "font" not in style
            assert float(style["font-size"].removesuffix("px")) >= 10
            assert style["fill"] == "var(--ink)"
    assert "training step" in page
    assert "first main direction" in page


def test_all_colours_of_pictures_follow_the_dark_mode(page) -> None:
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        assert not re.search(r"#[0-9a-fA-F]{3,8}\b(?!-)", re.sub(r'(?:href="|url\()#[^")]+', "", svg))
        assert "opacity" not in svg.replace("fill-opacity:0;", "")  # which would take contrast away
    assert set(re.findall(r"var\(--(\w+)\)", page)) <= set(PALETTE)


def test_a_colour_outside_the_palette_is_refused() -> None:
    figure = Figure(figsize=(1, 1))
    figure.text(0, 0, "red", color="#ff0000")
    with pytest.raises(ValueError, match="#ff0000, which is not in the palette"):
        inline_svg(figure, "red", "")


def test_the_same_record_gives_the_same_page(page, record) -> None:
    assert render_page(record) == page


def test_a_minimal_record_gives_a_page(snapshots, vocabulary) -> None:
    bare = replace(snapshots["at train start"], metrics={}, neighbours={})
    reader = Reader(render_page(RunRecord("One table", {"now": bare}, vocabulary)))
    assert "One table" in reader.text
    for absent in ("Metrics", "rebuilt tokens", "Nearest neighbours", "Settings", "In short", "better"):
        assert absent not in reader.text
    assert "The embeddings in two dimensions" in reader.text
    assert "Filled marks" not in reader.text


def test_the_page_of_a_run_without_a_rebuild_states_it(record) -> None:
    watched = {name: record.snapshots[name] for name in ("at train start", "at train end")}
    reader = Reader(render_page(replace(record, report=None, rebuilt=None, snapshots=watched)))
    assert "This page shows the token embeddings at train start and at train end ." in reader.text
    assert "before the rebuild" not in reader.text
    assert "What was rebuilt" not in reader.text
    assert "“Better” and “worse” are relative to “at train start”." in reader.text


def test_a_group_that_was_measured_later_only_has_its_row(record, snapshots) -> None:
    """Zero is a value; a missing value is left out."""
    first, last = (replace(snapshots[name], metrics={}) for name in (NAME, "at train end"))
    first.metrics["defemb/drift/all"] = 0.25
    last.metrics.update({"defemb/drift/all": 0.5, "defemb/drift/rare": 0.0})
    page = render_page(replace(record, snapshots={"then": first, "now": last}, history=(), report=None))
    rows = re.findall(r'<tr><th scope="row">(all|rare|medium)</th>(.*?)</tr>', page)
    assert [group for group, _ in rows] == ["all", "rare"]
    assert rows[1][1] == '<td class="number">–</td><td class="number">0</td>'


def test_models_of_other_vocabularies_are_matched_by_word(record, vocabulary) -> None:
    """The same words in another order: id 0 here is another word there."""
    tokens = vocabulary.tokens[::-1]
    other = Vocabulary(tokens, tokens, vocabulary.reasons, uncased=True)
    groups = frequency_groups(frequency_rank(other))
    table = torch.randn(len(other), 5, generator=torch.Generator().manual_seed(1))
    taken = TableSnapshot.take(table, groups, watched=torch.tensor([0, 5]))  # the last word there and the sixth from it
    first = record.snapshots[NAME]
    comparison = RunRecord(
        "Two models",
        {"a": first, "b": taken},
        vocabulary,
        rebuilt=groups["rare"],
        vocabularies={"b": other},
        facts={"a": {"tokens": "110"}, "b": {"tokens": "110", "only here": "<yes>"}},
    )
    page = render_page(comparison)
    [row] = [row for row in page.split("<tr>") if row.startswith(f'<th scope="row"><strong><bdi>{tokens[0]}<')]
    nearest = other.tokens[taken.neighbours[0][0][0]]
    assert f"<bdi>{escape(nearest)}</bdi>" in row
    # A word that was watched in only one of them has an empty cell, not another word's neighbours.
    [alone] = [row for row in page.split("<tr>") if row.startswith('<th scope="row"><strong><bdi>&lt;mask&gt;<')]
    assert alone.count("<td>–</td>") == 1
    text = Reader(page).text
    assert "This page shows the token embeddings of a and b ." in text
    assert "<yes>" in text
    assert "each panel has its own directions" in text
    # Ids of the first vocabulary mean nothing in the second: nothing is marked there.
    assert comparison.rebuilt_by_snapshot.keys() == {"a"}


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    return float(torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64) @ linear(colour))


def linear(colour: str) -> Tensor:
    values = torch.tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)], dtype=torch.float64)
    return torch.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(left: str, right: str) -> float:
    dark, light = sorted((luminance(left), luminance(right)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_data_stand_out_in_both_schemes(scheme) -> None:
    colours = {name: pair[scheme] for name, pair in PALETTE.items()}
    for name in ("ink", "muted", "link", "better", "worse"):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
    drawn = {*COLOURS.values(), *(style["color"] for style in SNAPSHOT_STYLES)}
    names = [name for name, pair in PALETTE.items() if pair[0] in drawn]
    assert len(names) == len(drawn) == 5
    for name in names:
        assert contrast(colours[name], colours["paper"]) >= 3, name


# Linear RGB as perceived without one type of cone: Machado, Oliveira and Fernandes 2009, severity 1.
CONES = {
    "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "no L cones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no M cones": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no S cones": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]


def lab(colour: str, cones: str) -> Tensor:
    """CIELAB, white D65."""
    seen = (torch.tensor(CONES[cones], dtype=torch.float64) @ linear(colour)).clamp(0, 1)
    white = torch.tensor([0.95047, 1, 1.08883], dtype=torch.float64)
    x, y, z = ratio = torch.tensor(XYZ, dtype=torch.float64) @ seen / white
    x, y, z = torch.where(ratio > 216 / 24389, ratio ** (1 / 3), (24389 / 27 * ratio + 16) / 116)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("cones", CONES)
@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colour_blind_readers_can_distinguish_groups(scheme, cones) -> None:
    colours = [pair[scheme] for pair in PALETTE.values() if pair[0] in COLOURS.values()]
    for left, right in itertools.combinations(colours, 2):
        # ΔE of 2 to 3 is just noticeable side by side.
        assert float(torch.linalg.vector_norm(lab(left, cones) - lab(right, cones))) > 15


def test_dark_colours_are_for_screens_and_paper_stays_white() -> None:
    style = stylesheet()
    assert "@media screen and (prefers-color-scheme:dark)" in style
    assert f"--paper:{PALETTE['paper'][0]};" in style.split("@media")[0]
    assert style.count("{") == style.count("}")
    assert set(re.findall(r"var\(--(\w+)\)", style)) <= set(PALETTE)
