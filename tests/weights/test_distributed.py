"""Several processes with gloo: all have the same rows, before and after training, for every kind of sharding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertForMaskedLM, BertForSequenceClassification, PreTrainedModel

import launched
import launching
from defemb_callbacks import build_definition_embeddings
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.reconstruction.backbone import reading_of
from defemb_callbacks.weights.rows import read_table, write_rows
from launched import IDS, metrics_of, new_rows, trained
from runs import defined_ids
from tiny import tiny_bert, tiny_dataset, tiny_glossary, wordpiece_tokenizer

pytestmark = pytest.mark.slow


class Launch:
    """The outcomes of the processes of one launch."""

    def __init__(self, folder: Path, processes: int) -> None:
        self.folder, self.processes = folder, processes

    def of(self, case: Any) -> list[dict[str, Any]]:
        """The outcome of a case in each process."""
        own = self.folder / case.__name__
        return [
            load_file(own / f"{rank}.safetensors") | json.loads((own / f"{rank}.json").read_text())
            for rank in range(self.processes)
        ]

    def same(self, case: Any, *names: str) -> dict[str, Any]:
        """The outcome of a case in the first process, after checking that these parts are equal in all processes."""
        first, *others = self.of(case)
        for other in others:
            for name in names:
                equal = torch.equal if isinstance(first[name], Tensor) else lambda one, two: one == two
                assert equal(first[name], other[name]), name
        return first


@pytest.fixture(scope="module", params=[2, 3], ids=lambda processes: f"{processes}-processes")
def launch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Launch:
    folder = tmp_path_factory.mktemp("launch")
    env = {"DEFEMB_CACHE": str(folder / "cache")}
    launching.launch(launched.__file__, str(folder), processes=request.param, env=env)
    return Launch(folder, request.param)


two_processes = pytest.mark.parametrize("launch", [2], indirect=True, ids=["2-processes"])


def reference(frequency: str, folder: Path) -> tuple[Tensor, Tensor]:
    """The original and the rebuilt table in a single process."""
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer, BertForSequenceClassification)
    untouched = read_table(model)
    config = DefinitionEMBConfig(frequency=frequency, cache_dir=str(folder))
    ready = build_definition_embeddings(model, tokenizer, tiny_glossary(), config)
    ids = torch.tensor(tiny_dataset(tokenizer)["input_ids"]).flatten()
    ready.apply(model, config, counts=torch.bincount(ids, minlength=len(untouched)))
    return untouched, read_table(model)


def check_trainer(launch: Launch, case: Any, tmp_path: Path) -> None:
    frequency = case.__name__.removeprefix("ddp_")
    found = launch.same(case, "init", "begin", "end")
    assert found["world"] == [launch.processes, launch.processes]
    assert found["backend"] == "gloo"
    # All processes write the same rows; the whole dataset is counted, not the share of a process.
    untouched, rebuilt = reference(frequency, tmp_path)
    assert torch.equal(found["init"], rebuilt if frequency == "vocabulary" else untouched)
    assert torch.equal(found["begin"], rebuilt)
    # Training continues from the new rows.
    ids = defined_ids(wordpiece_tokenizer())
    moved = (found["end"] - rebuilt)[ids].norm()
    assert 0 < moved < (found["end"] - untouched)[ids].norm() / 2

    run = launch.folder / case.__name__
    assert sorted(path.name for path in (run / "defemb").iterdir()) == [
        *("index.html", "metrics.png", "projection.png", "report.json", "singular_values.png")
    ]
    assert len(list(run.rglob("events.out.tfevents.*"))) == 2  # the Trainer's and ours, both of the main process
    measured = [[row for row in one["history"] if "defemb/isotropy/all" in row] for one in launch.of(case)]
    assert [rows.pop(0)["step"] for rows in measured] == [0] * launch.processes
    steps = [[row["step"] for row in rows] for rows in measured]
    # By default, the main process's clock decides for all processes, so they agree on the logged rows.
    assert all(found == steps[0] for found in steps)
    last = -(-64 // (4 * launch.processes))
    assert steps[0][-1] == last
    if frequency == "vocabulary":
        assert steps[0] == list(range(1, last + 1))
    assert measured[0][0]["defemb/isotropy/rare"] == measured[-1][0]["defemb/isotropy/rare"]


def test_a_trainer_on_all_processes(launch: Launch, tmp_path: Path) -> None:
    check_trainer(launch, launched.ddp_vocabulary, tmp_path)


@two_processes
def test_a_trainer_that_counts_its_data(launch: Launch, tmp_path: Path) -> None:
    check_trainer(launch, launched.ddp_training_data, tmp_path)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def model_of_one_process(**config: Any) -> PreTrainedModel:
    return tiny_bert(wordpiece_tokenizer(), BertForMaskedLM, **config)


def test_a_tied_table_sharded_by_fsdp2_behaves_like_an_unsharded_one(
    launch: Launch,
) -> None:
    found = launch.same(launched.fsdp_tied, "written", "metrics", "logits", "first", "second")
    model = model_of_one_process()
    write_rows(model, IDS, new_rows())
    assert torch.equal(found["written"], read_table(model))
    assert found["metrics"] == metrics_of(model)
    close(found["logits"], model(input_ids=IDS[None]).logits.detach())
    # Written while FSDP2 keeps unsharded weights, and not lost in the first step.
    write_rows(model, IDS, 2 * new_rows())
    first, second = trained(model, 2)
    close(found["first"], first)
    close(found["second"], second)


@pytest.mark.parametrize("case", [launched.ddp_new_rows, launched.fsdp_new_rows])
def test_all_processes_train_only_the_chosen_rows(launch: Launch, case: Any):
    found = launch.same(case, "before", "after")
    changed = (found["before"] != found["after"]).any(dim=1).nonzero().flatten().tolist()
    assert changed == sorted(IDS.tolist())
    if "moments" in found:
        assert found["moments"].sum(dim=1).nonzero().flatten().tolist() == sorted(IDS.tolist())
    else:
        assert found["world"] == launch.processes


def test_an_untied_output_table_and_other_shardings(launch: Launch) -> None:
    found = launch.same(launched.fsdp_untied, "input", "output", "by_column", "small", "metrics")
    model = model_of_one_process(tie_word_embeddings=False)
    write_rows(model, IDS, new_rows(), "output")
    assert torch.equal(found["input"], read_table(model))
    assert torch.equal(found["output"], read_table(model, "output"))
    assert found["metrics"] == metrics_of(model)
    expected = torch.zeros(476, 5)
    expected[IDS] = new_rows(5)
    assert torch.equal(found["by_column"], expected)
    assert found["small"].tolist() == [[0.0] * 5, [1.0] * 5]
    shards = [outcome["shard"] for outcome in launch.of(launched.fsdp_untied)]
    assert shards == ([1, 1] if launch.processes == 2 else [1, 1, 0])


@two_processes
@pytest.mark.parametrize("name", launched.ADAPTERS)
def test_adapters_on_sharded_embeddings(launch: Launch, name: str) -> None:
    found = launch.same(launched.fsdp_peft, f"{name} written", f"{name} first")
    written, first = launched.written_and_trained(launched.adapted(name))
    close(written[IDS], new_rows())
    close(found[f"{name} written"], written)
    close(found[f"{name} first"], first)
    assert not torch.equal(first, written)


@two_processes
def test_a_table_sharded_by_an_accelerate_config_file(launch: Launch) -> None:
    found = launch.same(launched.fsdp_of_the_file, "written", "first", "layers")
    assert found["layers"] == [True] * len(found["layers"]) != []
    model = tiny_bert(wordpiece_tokenizer(), BertForSequenceClassification)
    write_rows(model, IDS, new_rows())
    assert torch.equal(found["written"], read_table(model))
    close(found["first"], trained(model)[0])


@two_processes
def test_weights_that_only_the_main_process_has_yet(launch: Launch, tmp_path: Path) -> None:
    found = launch.same(launched.awaited, "before", "rows", "again", "note", "table", "first", "refused")
    _, rebuilt = reference("vocabulary", tmp_path)
    assert torch.equal(found["table"], rebuilt)
    assert torch.equal(found["again"], found["rows"])  # a second, already sharded model finds them in the cache
    assert found["note"]["rebuilt"] == len(tiny_glossary())
    model = tiny_bert(wordpiece_tokenizer(), BertForSequenceClassification)
    write_rows(model, torch.arange(len(rebuilt)), rebuilt)
    close(found["first"], trained(model)[0])
    assert "sharded over processes (FSDP2 or tensor parallelism)" in found["refused"]
    assert "pass `embeddings=DIR`" in found["refused"]


def test_a_distributed_build_equals_that_of_one_process(launch: Launch, tmp_path: Path) -> None:
    found = launch.same(launched.together, "rows", "again")
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer)
    calls: list[None] = []
    model.register_forward_hook(lambda *call: calls.append(None))
    config = DefinitionEMBConfig(cache_dir=str(tmp_path), batch_size=4, precision="float32")
    assert torch.equal(found["rows"], build_definition_embeddings(model, tokenizer, tiny_glossary(), config).rows)
    assert torch.equal(found["again"], found["rows"])
    shares = [outcome["batches"] for outcome in launch.of(launched.together)]
    assert max(shares) - min(shares) <= 1
    # Each process tries how the model reads, and encodes one more text to see which layers' states it returns.
    other, tried = tiny_bert(tokenizer), [None]
    other.register_forward_hook(lambda *call: tried.append(None))
    reading_of(other)
    assert sum(shares) - launch.processes * len(tried) == len(calls) - len(tried) > 0
    assert [outcome["read_again"] for outcome in launch.of(launched.together)] == [0] * launch.processes
    entries = launch.folder / "together" / "cache" / "embeddings"
    assert len([entry for entry in entries.iterdir() if entry.is_dir()]) == 1


def test_tensors_of_the_main_process_are_broadcast_without_pickling(launch: Launch) -> None:
    found = launch.same(
        launched.from_main, "rows", "flags", "half", "number", "types", "shapes", "others", "none", "pickled"
    )
    rows = torch.arange(12.0).view(4, 3).T
    assert all(map(torch.equal, (found["rows"], found["flags"], found["half"]), (rows, rows > 3, rows.half())))
    assert found["types"] == ["torch.float32", "torch.bool", "torch.float16", "torch.int64"]
    assert (found["number"], found["shapes"]) == (7, [[3, 4], [], [0, 3]])
    assert (found["others"], found["none"]) == (["Found", "main", None], None)
    assert found["pickled"] == []
    # The rows of a build, and the same rows from the cache.
    assert launch.same(launched.together, "pickled")["pickled"] == []


def test_errors_reach_all_processes_and_none_waits(launch: Launch) -> None:
    for outcome in launch.of(launched.together):
        nothing, main, first = outcome["errors"]
        assert nothing.startswith("ValueError: None of the 476 tokens has a definition")
        assert main == first == "ZeroDivisionError: division by zero"
