"""Figures: axes, legends and files."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from defemb_callbacks.metrics import spectra_by_group
from defemb_callbacks.metrics.catalog import CATALOG
from defemb_callbacks.metrics.snapshot import TableSnapshot, nearest_tokens, watched_tokens
from defemb_callbacks.reporting.figures import planes, plot_metrics, plot_projection, plot_singular_values
from defemb_callbacks.reporting.page import save_pictures
from defemb_callbacks.reporting.run_record import RunRecord
from defemb_callbacks.reporting.style import COLOURS
from defemb_callbacks.vocabulary.frequency import frequency_groups, frequency_rank
from defemb_callbacks.vocabulary.tokens import Vocabulary, read_vocabulary
from defemb_callbacks.weights.rows import read_table
from tiny import tiny_bert, wordpiece_tokenizer

GROUPS = ["all", "frequent", "medium", "rare"]


TITLES = [f"{meaning.title}  ({meaning.scale})" for meaning in CATALOG.values()]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return read_vocabulary(wordpiece_tokenizer())


@pytest.fixture(scope="module")
def groups(vocabulary: Vocabulary) -> dict[str, Tensor]:
    return frequency_groups(frequency_rank(vocabulary))


@pytest.fixture(scope="module")
def table() -> Tensor:
    return read_table(tiny_bert(wordpiece_tokenizer()))


@pytest.fixture(scope="module")
def snapshots(groups: dict[str, Tensor], table: Tensor) -> dict[str, TableSnapshot]:
    moved = table.clone()
    moved[groups["rare"]] += 0.1
    return {"before": TableSnapshot.take(table, groups), "train start": TableSnapshot.take(moved, groups)}


@pytest.fixture
def history() -> list[dict[str, Any]]:
    rows = []
    for step in (10, 20, 30):
        figures = {f"defemb/{metric}/{group}": step + len(group) for metric in CATALOG for group in GROUPS}
        rows.append({"step": step, "loss": 1.0} | figures)
    del rows[1]["defemb/isotropy/rare"]
    return [*rows, {"step": 30, "train_runtime": 1.0}]


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises ImportError


def panel(figure: Any, start: str) -> Any:
    [axis] = [axis for axis in figure.axes if axis.get_title(loc="left").startswith(start)]
    return axis


def legend_of(figure: Any) -> list[str]:
    [legend] = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_metrics_have_a_panel_each_and_a_line_for_each_group(history) -> None:
    figure = plot_metrics(history)
    assert [axis.get_title(loc="left") for axis in figure.axes] == TITLES
    for axis in figure.axes:
        assert {line.get_label(): line.get_color() for line in axis.lines} == COLOURS
        assert len({line.get_marker() for line in axis.lines}) == len(COLOURS)  # distinguishable without colours, too
    lines = {line.get_label(): line.get_xydata().tolist() for line in panel(figure, "Isotropy").lines}
    assert lines["all"] == [[10, 13], [20, 23], [30, 33]]
    assert lines["rare"] == [[10, 14], [30, 34]]  # a missing value is not zero
    assert legend_of(figure) == GROUPS
    assert figure.legends[0].get_title().get_text() == "tokens by frequency"


def test_crosses_show_the_metrics_before_the_rebuild(history) -> None:
    figure = plot_metrics(history, before={"defemb/isotropy/rare": 0.25})
    crosses = [line for line in panel(figure, "Isotropy").lines if line.get_marker() == "x"]
    assert [(line.get_xydata().tolist(), line.get_color()) for line in crosses] == [([[0, 0.25]], COLOURS["rare"])]
    assert not [line for line in panel(figure, "Relation").lines if line.get_marker() == "x"]
    assert legend_of(figure) == [*GROUPS, "before the rebuild"]
    assert legend_of(plot_metrics(history, before={"defemb/unheard_of/rare": 0.25})) == GROUPS


@pytest.mark.parametrize("shown", [1, 2, 3, 5])
def test_only_measured_metrics_have_a_panel(history, shown) -> None:
    wanted = list(CATALOG)[:shown]
    rows = [
        {key: row[key] for key in row if key == "step" or key.split("/")[1:2] in [[w] for w in wanted]}
        for row in history
    ]
    figure = plot_metrics(rows)
    assert [axis.get_title(loc="left") for axis in figure.axes] == TITLES[:shown]
    assert [axis.get_xlabel() for axis in figure.axes[-2:]] == ["training step"] * min(shown, 2)


def test_the_output_table_has_its_own_panels() -> None:
    rows = [{"step": step, "defemb/norm/all": 1.0, "defemb/output_norm/all": 2.0} for step in (1, 2)]
    [axis] = plot_metrics(rows).axes
    assert axis.lines[0].get_ydata().tolist() == [1, 1]
    figure = plot_metrics(rows, output=True)
    assert figure.axes[0].lines[0].get_ydata().tolist() == [2, 2]
    assert figure.axes[0].get_title(loc="left") == "Norm  (mean length of a vector)"
    assert "output table" in figure.legends[0].get_title().get_text()


def test_a_metric_without_a_meaning_is_shown_by_its_name() -> None:
    [axis] = plot_metrics([{"step": 1, "defemb/some_new_metric/all": 1.0}]).axes
    assert axis.get_title(loc="left") == "Some new metric"


def test_a_history_without_metrics_is_refused() -> None:
    with pytest.raises(ValueError, match="no row with `defemb/…` metrics"):
        plot_metrics([{"step": 1, "loss": 0.5}])
    with pytest.raises(ValueError, match="no row with `defemb/…` metrics of this table"):
        plot_metrics([{"step": 1, "defemb/norm/all": 0.5}], output=True)


def test_singular_values_are_relative_to_the_largest() -> None:
    figure = plot_singular_values(
        {"_before": torch.tensor([4.0, 2.0, 1.0]), "train end": torch.tensor([1.0, 1.0, 0.5])}
    )
    [axis] = figure.axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["_before", "train end"]
    assert [line.get_ydata().tolist() for line in axis.lines] == [[1, 0.5, 0.25], [1, 1, 0.5]]
    assert axis.get_yscale() == "log"
    assert axis.get_xlabel()
    assert axis.get_ylabel()


def test_zero_singular_values_do_not_compress_the_axis() -> None:
    figure = plot_singular_values({"rank 2": torch.tensor([4.0, 2.0, 1e-9, 0.0]), "nothing": torch.zeros(3)})
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines] == [[1, 0.5], []]
    assert 0.1 < figure.axes[0].get_ylim()[0] < 0.5


def test_a_snapshot_contains_the_spectrum_and_a_sample(groups, table, snapshots) -> None:
    before = snapshots["before"]
    expected = torch.linalg.svdvals(table[groups["all"]].double())
    torch.testing.assert_close(before.spectrum, expected)
    right = torch.linalg.svd(table[groups["all"]].double(), full_matrices=False).Vh[:2]
    torch.testing.assert_close((right @ before.basis).abs(), torch.eye(2, dtype=torch.float64), atol=1e-6, rtol=0)
    for name in ("frequent", "medium", "rare"):
        assert torch.equal(before.point_ids[name], groups[name])
        assert torch.equal(before.points[name], table[groups[name]])
    assert before.metrics == {}
    assert before.neighbours == {}


def test_a_given_spectrum_is_used_as_it_is(groups, table, snapshots) -> None:
    doubled = spectra_by_group(2 * table, groups)["all"]
    taken = TableSnapshot.take(table, groups, spectrum=doubled, metrics={"defemb/norm/all": 1.0})
    torch.testing.assert_close(taken.spectrum, 2 * snapshots["before"].spectrum)
    assert taken.metrics == {"defemb/norm/all": 1.0}


def test_a_large_group_is_thinned_out_evenly(groups, table, monkeypatch) -> None:
    monkeypatch.setattr("defemb_callbacks.metrics.snapshot.POINTS", 5)
    taken = TableSnapshot.take(table.bfloat16(), groups)
    ids = groups["medium"]
    step = (len(ids) - 1) / 4
    assert taken.point_ids["medium"].tolist() == [int(ids[round(step * i)]) for i in range(5)]
    assert torch.equal(taken.points["medium"], table.bfloat16()[taken.point_ids["medium"]].float())


def test_neighbours_are_those_of_a_direct_search(table) -> None:
    asked, among = torch.tensor([40, 300]), torch.tensor([300, 7, 40, 90, 91, 200])
    found = nearest_tokens(table, asked, among, 3)
    for token in asked.tolist():
        cosines = torch.cosine_similarity(table[token].double(), table[among].double())
        best = sorted((pair for pair in zip(among.tolist(), cosines.tolist(), strict=True)), key=lambda pair: -pair[1])
        best = [pair for pair in best if pair[0] != token][:3]
        assert [other for other, _ in found[token]] == [other for other, _ in best]
        assert [value for _, value in found[token]] == pytest.approx([value for _, value in best])
    assert nearest_tokens(table, torch.tensor([40]), torch.tensor([40]), 3) == {40: []}
    assert len(nearest_tokens(table, torch.tensor([40]), torch.tensor([40, 41]), 3)[40]) == 1


def test_watched_tokens_are_rare_words_and_always_the_same(groups, vocabulary) -> None:
    watched = watched_tokens(groups["all"], groups, vocabulary, most=4)
    assert len(watched) == 4
    assert set(watched.tolist()) <= set(groups["rare"].tolist())
    assert all(vocabulary.words[index] for index in watched.tolist())
    assert torch.equal(watched, watched_tokens(groups["all"].flip(0), groups, vocabulary, most=4))
    # Without a rare candidate, those of the next group; with none at all, none.
    medium = watched_tokens(torch.cat([groups["frequent"], groups["medium"]]), groups, vocabulary)
    assert set(medium.tolist()) <= set(groups["medium"].tolist())
    assert len(watched_tokens(torch.tensor([0]), groups, vocabulary)) == 0


def test_projections_share_axes_and_the_first_basis(snapshots) -> None:
    figure = plot_projection(snapshots)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["before", "train start"]
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    basis = snapshots["before"].basis
    for axis, snapshot in zip(figure.axes, snapshots.values(), strict=True):
        expected = snapshot.points["rare"].double() @ basis
        torch.testing.assert_close(torch.as_tensor(_points(axis, "rare")), expected)
    assert legend_of(figure) == ["frequent", "medium", "rare"]


def test_rebuilt_tokens_are_filled_and_kept_ones_hollow(groups, snapshots) -> None:
    rebuilt = groups["rare"][::3]
    figure = plot_projection(snapshots, {"before": rebuilt})
    before = snapshots["before"]
    for filled in (True, False):
        wanted = torch.isin(before.point_ids["rare"], rebuilt) == filled
        expected = before.points["rare"][wanted].double() @ before.basis
        torch.testing.assert_close(torch.as_tensor(_points(figure.axes[0], "rare", filled)), expected)
    # If no token was rebuilt, all are hollow: panels must not contradict the legend.
    assert len(_points(figure.axes[1], "rare", filled=False)) == len(before.points["rare"])
    assert legend_of(figure) == ["frequent", "medium", "rare", "rebuilt", "kept"]


def _points(axis: Any, label: str, filled: bool = True) -> Any:
    [points] = [
        line
        for line in axis.lines
        if line.get_label() == label and (line.get_markerfacecolor() != "none") == filled and len(line.get_xdata())
    ]
    return points.get_xydata()


def test_another_space_has_its_own_basis(groups, table, snapshots) -> None:
    turned = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0))).Q
    other = TableSnapshot.take(table @ turned, groups)
    narrow = TableSnapshot.take(table[:, :8], groups)
    fewer = TableSnapshot.take(table, {name: ids[::2] for name, ids in groups.items()})
    before, start = snapshots.values()
    found = planes({"a": before, "b": start, "c": other, "d": narrow, "e": fewer})
    assert [plane is before.basis for plane in found.values()] == [True, True, False, False, False]
    assert found["c"] is other.basis
    figure = plot_projection({"a": before, "d": narrow, "b": start})
    first, second, third = (axis.get_xlim() for axis in figure.axes)
    assert first == third != second


def test_many_tables_fit_into_one_figure(snapshots) -> None:
    many = {f"$\\model_{number}$": snapshots["before"] for number in range(7)}
    figure = plot_projection(many)
    figure.savefig(io.BytesIO())  # text between dollar signs is not parsed as a formula
    assert [axis.get_title(loc="left") for axis in figure.axes] == list(many)
    styles = [
        (line.get_color(), str(line.get_linestyle()))
        for line in plot_singular_values({name: taken.spectrum for name, taken in many.items()}).axes[0].lines
    ]
    assert len(set(styles)) == 5


def test_every_axis_has_a_label(history, snapshots) -> None:
    for figure in (plot_projection(snapshots), plot_singular_values({"a": snapshots["before"].spectrum})):
        assert all(axis.get_xlabel() for axis in figure.axes)
        assert figure.axes[0].get_ylabel()
    for axis in plot_metrics(history).axes:
        assert axis.get_title(loc="left")


def test_all_pictures_and_the_page_are_written(tmp_path: Path, history, snapshots, vocabulary) -> None:
    history[0]["defemb/output_norm/all"] = 1.0
    written = save_pictures(tmp_path / "defemb", RunRecord("A run", snapshots, vocabulary, history))
    assert sorted(path.name for path in written) == [
        "index.html",
        "metrics.png",
        "output_metrics.png",
        "projection.png",
        "singular_values.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written if path.suffix == ".png")
    assert "<h1>A run</h1>" in (tmp_path / "defemb" / "index.html").read_text(encoding="utf-8")


def test_without_metrics_no_picture_of_metrics_is_written(tmp_path: Path, snapshots, vocabulary) -> None:
    written = save_pictures(tmp_path, RunRecord("A model", snapshots, vocabulary, [{"step": 1, "loss": 1.0}]))
    assert sorted(path.name for path in written) == ["index.html", "projection.png", "singular_values.png"]


def test_a_record_without_snapshots_is_refused(vocabulary) -> None:
    with pytest.raises(ValueError, match="at least one snapshot"):
        RunRecord("Nothing", {}, vocabulary)


@pytest.mark.usefixtures("no_matplotlib")
def test_missing_matplotlib_is_reported_with_its_cure(tmp_path: Path, history, snapshots, vocabulary, caplog) -> None:
    with pytest.raises(ImportError, match=r'pip install "defemb-callbacks\[plots\]"'):
        plot_metrics(history)
    with caplog.at_level(logging.WARNING, "defemb_callbacks"):
        assert save_pictures(tmp_path / "defemb", RunRecord("A run", snapshots, vocabulary, history)) == []
    assert "No pictures are saved. Pass plots=False to silence this warning." in caplog.text
    assert not (tmp_path / "defemb").exists()


def test_pyplot_is_not_imported(snapshots, monkeypatch) -> None:
    """It would choose a backend for the user's own plots."""
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    plot_projection(snapshots)
    assert "matplotlib.pyplot" not in sys.modules


def test_the_users_style_is_unchanged(history) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    plot_metrics(history)
    assert dict(matplotlib.rcParams) == before
