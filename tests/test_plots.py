"""The pictures: what stands on their axes, in their legends and in their files."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from defemb_callbacks.frequency import frequency_groups, frequency_rank
from defemb_callbacks.plots import (
    TableSnapshot,
    plot_metrics,
    plot_projection,
    plot_singular_values,
    save_run_plots,
)
from defemb_callbacks.plots.figures import PANELS
from defemb_callbacks.plots.style import COLOURS
from defemb_callbacks.rows import embedding_weight, read_table
from defemb_callbacks.vocabulary import read_vocabulary
from tiny import tiny_bert, wordpiece_tokenizer

GROUPS = ["all", "frequent", "medium", "rare"]


@pytest.fixture(scope="module")
def groups() -> dict[str, Tensor]:
    return frequency_groups(frequency_rank(read_vocabulary(wordpiece_tokenizer())))


@pytest.fixture(scope="module")
def snapshots(groups: dict[str, Tensor]) -> dict[str, TableSnapshot]:
    model = tiny_bert(wordpiece_tokenizer())
    taken = {"before": TableSnapshot.take(model, groups)}
    with torch.no_grad():
        embedding_weight(model)[groups["rare"]] += 2
    return taken | {"train start": TableSnapshot.take(model, groups)}


@pytest.fixture
def history() -> list[dict[str, Any]]:
    rows = []
    for step in (10, 20, 30):
        figures = {f"defemb/{metric}/{group}": step + len(group) for metric in PANELS for group in GROUPS}
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


def test_metrics_have_a_panel_each_and_a_line_for_each_group(history) -> None:
    figure = plot_metrics(history)
    assert [axis.get_title(loc="left") for axis in figure.axes] == list(PANELS.values())
    for axis in figure.axes:
        assert {line.get_label(): line.get_color() for line in axis.lines} == COLOURS
    lines = {line.get_label(): line.get_xydata().tolist() for line in panel(figure, "isotropy").lines}
    assert lines["all"] == [[10, 13], [20, 23], [30, 33]]
    assert lines["rare"] == [[10, 14], [30, 34]]  # a missing value is no zero
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == GROUPS
    assert legend.get_title().get_text() == "tokens by frequency"


def test_crosses_show_the_metrics_before_the_rebuild(history) -> None:
    figure = plot_metrics(history, before={"defemb/isotropy/rare": 0.25})
    crosses = [line for line in panel(figure, "isotropy").lines if line.get_marker() == "x"]
    assert [(line.get_xydata().tolist(), line.get_color()) for line in crosses] == [([[0, 0.25]], COLOURS["rare"])]
    assert not [line for line in panel(figure, "relation").lines if line.get_marker() == "x"]
    assert "before the rebuild" in figure.legends[0].get_title().get_text()


@pytest.mark.parametrize("shown", [1, 2, 3, 5])
def test_only_measured_metrics_have_a_panel(history, shown) -> None:
    wanted = list(PANELS)[:shown]
    rows = [
        {key: row[key] for key in row if key == "step" or key.split("/")[1:2] in [[w] for w in wanted]}
        for row in history
    ]
    figure = plot_metrics(rows)
    assert [axis.get_title(loc="left") for axis in figure.axes] == [PANELS[metric] for metric in wanted]
    assert [axis.get_xlabel() for axis in figure.axes[-2:]] == ["training step"] * min(shown, 2)


def test_a_history_without_metrics_is_refused() -> None:
    with pytest.raises(ValueError, match="no row with defemb/… metrics"):
        plot_metrics([{"step": 1, "loss": 0.5}])


def test_singular_values_are_relative_to_the_largest() -> None:
    figure = plot_singular_values({"before": torch.tensor([4.0, 2.0, 1.0]), "train end": torch.tensor([1.0, 1.0, 0.5])})
    [axis] = figure.axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["before", "train end"]
    assert [line.get_ydata().tolist() for line in axis.lines] == [[1, 0.5, 0.25], [1, 1, 0.5]]
    assert axis.get_yscale() == "log"
    assert axis.get_xlabel()
    assert axis.get_ylabel()


def test_a_snapshot_knows_the_spectrum_and_a_sample(groups, snapshots) -> None:
    table = read_table(tiny_bert(wordpiece_tokenizer()))
    before = snapshots["before"]
    expected = torch.linalg.svdvals(table[groups["all"]].double())
    torch.testing.assert_close(before.spectrum, expected)
    right = torch.linalg.svd(table[groups["all"]].double(), full_matrices=False).Vh[:2]
    torch.testing.assert_close((right @ before.basis).abs(), torch.eye(2, dtype=torch.float64), atol=1e-6, rtol=0)
    for name in ("frequent", "medium", "rare"):
        assert len(before.points[name]) == len(groups[name])
        assert torch.equal(before.points[name][0], table[groups[name][0]])


def test_a_large_group_is_thinned_out_evenly(groups, monkeypatch) -> None:
    monkeypatch.setattr("defemb_callbacks.plots.snapshot.POINTS", 5)
    model = tiny_bert(wordpiece_tokenizer())
    points = TableSnapshot.take(model, groups).points["medium"]
    ids = groups["medium"]
    assert len(points) == 5
    table = read_table(model)
    assert torch.equal(points[0], table[ids[0]])
    assert torch.equal(points[-1], table[ids[-1]])


def test_projections_share_axes_and_the_first_basis(snapshots) -> None:
    figure = plot_projection(snapshots)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["before", "train start"]
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    rare = {axis.get_title(loc="left"): _scatter(axis, "rare") for axis in figure.axes}
    basis = snapshots["before"].basis
    for name, points in rare.items():
        expected = snapshots[name].points["rare"].double() @ basis
        torch.testing.assert_close(torch.as_tensor(points), expected)
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["frequent", "medium", "rare"]


def _scatter(axis: Any, label: str) -> Any:
    [points] = [collection for collection in axis.collections if collection.get_label() == label]
    return points.get_offsets().data


def test_three_pictures_are_written(tmp_path: Path, history, snapshots) -> None:
    written = save_run_plots(tmp_path / "defemb", history[:-1], snapshots)
    assert sorted(path.name for path in written) == ["metrics.png", "projection.png", "singular_values.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_without_metrics_two_pictures_are_written(tmp_path: Path, snapshots) -> None:
    written = save_run_plots(tmp_path, [], snapshots)
    assert sorted(path.name for path in written) == ["projection.png", "singular_values.png"]


@pytest.mark.usefixtures("no_matplotlib")
def test_missing_matplotlib_is_told_with_its_cure(tmp_path: Path, history, snapshots, caplog) -> None:
    with pytest.raises(ImportError, match=r'pip install "defemb-callbacks\[plots\]"'):
        plot_metrics(history)
    with caplog.at_level(logging.WARNING, "defemb_callbacks"):
        assert save_run_plots(tmp_path / "defemb", history, snapshots) == []
    assert "No pictures are saved; plots=False silences this." in caplog.text
    assert not (tmp_path / "defemb").exists()


def test_pyplot_stays_out(snapshots, monkeypatch) -> None:
    """It would choose a backend for the user's own plots."""
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    plot_projection(snapshots)
    assert "matplotlib.pyplot" not in sys.modules
