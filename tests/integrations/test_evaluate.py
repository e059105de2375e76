"""The measurements for `evaluate` equal the functions, however the table is passed."""

from __future__ import annotations

import importlib
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from defemb_callbacks.metrics import isotropy, relation_auc

evaluate = pytest.importorskip("evaluate")

from defemb_callbacks.integrations import evaluate as measurements  # noqa: E402 - needs evaluate
from defemb_callbacks.integrations.evaluate import Isotropy, RelationAUC  # noqa: E402

PAIRS = torch.stack([torch.arange(60), 60 + torch.arange(60)], dim=1)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a measurement opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(params=[False, True], ids=["cached", "in memory"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    return {"cache_dir": str(tmp_path), "keep_in_memory": request.param}


@pytest.fixture
def table() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    left, noise = torch.randn(2, 60, 6, generator=generator)
    return torch.cat([left, left + noise]) + 0.3


def test_their_results_are_those_of_the_functions(table: Tensor, settings: dict[str, Any]):
    assert Isotropy(**settings).compute(data=table) == {"isotropy": isotropy(table)}
    assert RelationAUC(**settings).compute(data=table, pairs=PAIRS) == {"relation_auc": relation_auc(table, PAIRS)}


def test_options_reach_the_functions(table: Tensor, settings: dict[str, Any]):
    one_sign = Isotropy(**settings).compute(data=table, both_signs=False)["isotropy"]
    assert one_sign == isotropy(table, both_signs=False) != isotropy(table)
    found = RelationAUC(**settings).compute(data=table, pairs=PAIRS, centred=False, seed=3)["relation_auc"]
    assert found == relation_auc(table, PAIRS, centred=False, seed=3) != relation_auc(table, PAIRS)


@pytest.mark.parametrize(
    "give",
    [
        Tensor.tolist,
        Tensor.numpy,
        lambda table: table.clone().requires_grad_(),
        lambda table: list(table),
        lambda table: np.asfortranarray(table.numpy()),
    ],
    ids=["lists", "array", "tensor with gradient", "list of tensors", "array in column order"],
)
def test_lists_arrays_and_tensors_are_the_same_table(give: Any, table: Tensor, settings: dict[str, Any]):
    assert Isotropy(**settings).compute(data=give(table)) == {"isotropy": isotropy(table)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_without_loss(dtype: torch.dtype, table: Tensor, settings: dict[str, Any]):
    half = table.to(dtype)
    assert Isotropy(**settings).compute(data=half) == {"isotropy": isotropy(half.float())}


@pytest.mark.parametrize("give", [Tensor.tolist, Tensor.numpy, lambda pairs: pairs.int().numpy(), lambda pairs: pairs])
def test_pairs_may_be_lists_arrays_or_tensors(give: Any, table: Tensor, settings: dict[str, Any]):
    found = RelationAUC(**settings).compute(data=table, pairs=give(PAIRS))
    assert found == {"relation_auc": relation_auc(table, PAIRS)}


def test_a_table_is_kept_in_float32_or_on_request_in_float64(table: Tensor, settings: dict[str, Any]):
    fine = table.double() / 3
    assert fine.float().double().ne(fine).any()
    assert Isotropy(**settings).compute(data=fine) == {"isotropy": isotropy(fine.float())}
    assert Isotropy("float64", **settings).compute(data=fine) == {"isotropy": isotropy(fine)} != isotropy(fine.float())
    assert Isotropy("float64", **settings).compute(data=fine.tolist()) == {"isotropy": isotropy(fine)}


def test_a_table_can_be_added_in_batches(table: Tensor, settings: dict[str, Any]):
    measurement = Isotropy(**settings)
    measurement.add_batch(data=table[:50])
    for row in table[50:53]:
        measurement.add(data=row)
    measurement.add(data=table[53].tolist())
    measurement.add_batch(data=table[54:].numpy())
    assert len(measurement) == len(table)
    assert measurement.compute() == {"isotropy": isotropy(table)}


def test_rows_come_back_in_order_across_blocks(
    monkeypatch: pytest.MonkeyPatch, table: Tensor, settings: dict[str, Any]
):
    monkeypatch.setattr(measurements, "BATCH_SIZE", 5 * table.shape[1])
    assert RelationAUC(**settings).compute(data=table, pairs=PAIRS) == {"relation_auc": relation_auc(table, PAIRS)}


def test_a_measurement_can_be_used_again(table: Tensor, settings: dict[str, Any]):
    measurement = Isotropy(**settings)
    assert measurement.compute(data=table) == {"isotropy": isotropy(table)}
    assert measurement.compute(data=table[:20]) == {"isotropy": isotropy(table[:20])}


def test_nothing_is_left_in_the_cache(table: Tensor, tmp_path: Path):
    Isotropy(cache_dir=str(tmp_path)).compute(data=table)
    assert not list(tmp_path.rglob("*.arrow"))


def test_they_can_be_combined(table: Tensor, settings: dict[str, Any]):
    both = evaluate.combine([Isotropy(**settings), RelationAUC(pairs=PAIRS, **settings)])
    expected = {"isotropy": isotropy(table), "relation_auc": relation_auc(table, PAIRS)}
    assert both.compute(data=table) == expected
    both.add_batch(data=table[:70])
    both.add_batch(data=table[70:])
    assert both.compute() == expected


def test_pairs_of_a_call_come_before_those_of_the_constructor(table: Tensor, settings: dict[str, Any]):
    measurement = RelationAUC(pairs=PAIRS.flip(0)[:20], **settings)
    assert measurement.compute(data=table, pairs=PAIRS) == {"relation_auc": relation_auc(table, PAIRS)}


def test_the_script_itself_can_be_loaded(monkeypatch: pytest.MonkeyPatch, table: Tensor, settings: dict[str, Any]):
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", settings["cache_dir"])
    monkeypatch.setattr(sys, "path", [*sys.path])  # evaluate adds its folder
    loaded = evaluate.load(str(measurements.__file__), module_type="measurement", **settings)
    assert loaded.name == "isotropy"
    assert loaded.compute(data=table) == {"isotropy": isotropy(table)}


@pytest.mark.parametrize("measurement", [Isotropy, RelationAUC])
def test_they_describe_themselves_to_evaluate(measurement: Any, settings: dict[str, Any]):
    module = measurement(**settings)
    assert module.module_type == "measurement"
    assert module.name == {Isotropy: "isotropy", RelationAUC: "relation_auc"}[measurement]
    assert module.description
    assert module.citation.startswith("@")
    assert "Args:" in module.inputs_description
    assert module.inputs_description in module.compute.__doc__


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"table must have shape \(n, d\)"),
        ([[], []], r"table must have shape \(n, d\)"),
        ([1.0, 2.0], r"data must have shape \(n, d\), got \(2,\)\. Use add\(data=row\)"),
        (torch.zeros(2, 2, 2), r"got \(2, 2, 2\)"),
        ([[1.0, 2.0], [1.0]], "rows of equal length"),
        ([["cat"]], "table of numbers"),
        ([[1.0, 2.0], [float("nan"), 1.0]], "row 1 of table has a NaN"),
    ],
)
def test_invalid_tables_are_refused(data: Any, message: str, settings: dict[str, Any]):
    with pytest.raises(ValueError, match=message):
        Isotropy(**settings).compute(data=data)


def test_rows_of_different_lengths_are_refused(settings: dict[str, Any]):
    measurement = Isotropy(**settings)
    measurement.add_batch(data=[[1.0, 2.0], [3.0, 4.0]])
    measurement.add(data=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="row 2 has 3 entries, row 0 has 2"):
        measurement.compute()


def test_a_refused_batch_adds_no_rows(table: Tensor, settings: dict[str, Any]):
    measurement = Isotropy(**settings)
    with pytest.raises(ValueError, match="table of numbers"):
        measurement.add_batch(data=[*table.tolist(), ["cat"]])
    assert measurement.compute(data=table) == {"isotropy": isotropy(table)}


def test_missing_or_invalid_pairs_are_refused(table: Tensor, settings: dict[str, Any]):
    with pytest.raises(ValueError, match=r"needs pairs of related rows. Call compute\(data=..., pairs="):
        RelationAUC(**settings).compute(data=table)
    with pytest.raises(ValueError, match="pairs name row 119, the table has rows 0 to 99"):
        RelationAUC(**settings).compute(data=table[:100], pairs=PAIRS)
    with pytest.raises(TypeError, match="pairs must be an int64 tensor"):
        RelationAUC(**settings).compute(data=table, pairs=PAIRS.float())


def test_an_unknown_precision_is_refused(settings: dict[str, Any]):
    with pytest.raises(ValueError, match="must be 'float32' \\(the default\\) or 'float64', got 'float16'"):
        Isotropy("float16", **settings)


def test_only_this_module_imports_evaluate():
    sources = str(Path(measurements.__file__).parents[2])
    script = (
        f"import sys; sys.path.insert(0, {sources!r}); import defemb_callbacks, defemb_callbacks.metrics; "
        "sys.exit('evaluate' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_without_evaluate_the_cure_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)
    monkeypatch.delitem(sys.modules, measurements.__name__)
    with pytest.raises(ImportError, match=re.escape('pip install "defemb-callbacks[examples]"')):
        importlib.import_module(measurements.__name__)
