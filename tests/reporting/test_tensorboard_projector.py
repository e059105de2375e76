"""Vectors for TensorBoard's embedding projector, read with TensorBoard's own code."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from tensorboard.plugins.projector import ProjectorConfig
from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
from torch import Tensor
from werkzeug.test import Client
from werkzeug.wrappers import Response

from defemb_callbacks.reporting.tensorboard_projector import save_projector
from defemb_callbacks.vocabulary.frequency import frequency_groups, frequency_rank
from defemb_callbacks.vocabulary.tokens import Vocabulary

HOSTILE = ("a\tb", "a\nb", "a\rb", "a\u2028b", "a\x85b", "a\x00b", "a\\b", '"a', "a b", "Ġword", "ünï", "")


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    tokens = ("[UNK]", *HOSTILE, *(f"word{number}" for number in range(20)))
    words = tuple(token if token.startswith("word") else None for token in tokens)
    reasons = ("special token", *("symbol" for _ in HOSTILE), *(None for _ in range(20)))
    return Vocabulary(tokens, words, reasons, uncased=True)


@pytest.fixture(scope="module")
def groups(vocabulary: Vocabulary) -> dict[str, Tensor]:
    return frequency_groups(frequency_rank(vocabulary))


@pytest.fixture(scope="module")
def table(vocabulary: Vocabulary) -> Tensor:
    scale = torch.logspace(-20, 20, len(vocabulary))[:, None]
    return torch.randn(len(vocabulary), 6, generator=torch.Generator().manual_seed(0)) * scale


def tensorboard(folder: Path) -> Any:
    """Asks TensorBoard's projector for a route, as its web page does."""
    data = SimpleNamespace(list_runs=lambda context, experiment_id: [])
    plugin = ProjectorPlugin(SimpleNamespace(data_provider=data, logdir=str(folder)))
    routes = plugin.get_plugin_apps()

    def ask(route: str, **query: str) -> Response:
        response = Client(routes[route]).get("/", query_string=query)
        assert response.status_code == 200, response.get_data(as_text=True)
        return response

    return ask


def test_tensorboard_shows_every_vector_beside_its_token(tmp_path, table, vocabulary, groups) -> None:
    written = save_projector(tmp_path, table, vocabulary, groups, rebuilt=groups["rare"])
    assert [path.name for path in written] == ["tensors.tsv", "metadata.tsv", "projector_config.pbtxt"]
    ask = tensorboard(tmp_path)
    [run] = json.loads(ask("/runs").get_data())
    [embedding] = json.loads(ask("/info", run=run).get_data())["embeddings"]
    name = embedding["tensorName"]
    ids = groups["all"]
    assert embedding["tensorShape"] == [len(ids), 6]
    vectors = np.frombuffer(ask("/tensor", run=run, name=name).get_data(), dtype=np.float32).reshape(-1, 6)
    np.testing.assert_allclose(vectors, table[ids].numpy(), rtol=1e-4)
    lines = ask("/metadata", run=run, name=name).get_data().decode().removesuffix("\n").split("\n")
    assert lines[0].split("\t") == ["token", "word", "group", "rebuilt"]
    rows = [line.split("\t") for line in lines[1:]]
    assert len(rows) == len(ids)
    group_of = {index: group for group in ("frequent", "medium", "rare") for index in groups[group].tolist()}
    for index, (_, word, group, rebuilt) in zip(ids.tolist(), rows, strict=True):
        assert word == (vocabulary.words[index] or "")
        assert group == group_of[index]
        assert rebuilt == ("yes" if group == "rare" else "no")


def test_tokens_that_would_break_a_line_are_escaped_and_others_are_not(tmp_path, table, vocabulary, groups) -> None:
    save_projector(tmp_path, table, vocabulary, groups)
    lines = (tmp_path / "metadata.tsv").read_text(encoding="utf-8").split("\n")
    tokens = [line.split("\t")[0] for line in lines[1:-1]]
    assert tokens[: len(HOSTILE)] == [
        *(r"a\tb", r"a\nb", r"a\rb", r"a\u2028b", r"a\x85b", r"a\x00b", r"a\\b"),
        *('"a', "a b", "Ġword", "ünï", ""),
    ]
    # The number of lines is the same for every definition of a line break.
    assert len((tmp_path / "metadata.tsv").read_text(encoding="utf-8").splitlines()) == len(groups["all"]) + 1
    assert lines[0] == "token\tword\tgroup"  # without rebuilt tokens, this column is left out


def test_the_config_names_files_beside_it(tmp_path, table, vocabulary, groups) -> None:
    save_projector(tmp_path / "new" / "folder", table.bfloat16(), vocabulary, groups)
    config = ProjectorConfig()
    text_format.Parse((tmp_path / "new" / "folder" / "projector_config.pbtxt").read_text(encoding="utf-8"), config)
    [embedding] = config.embeddings
    assert (embedding.tensor_path, embedding.metadata_path) == ("tensors.tsv", "metadata.tsv")
    assert list(embedding.tensor_shape) == [len(groups["all"]), 6]
    rows = np.loadtxt(tmp_path / "new" / "folder" / "tensors.tsv", delimiter="\t", ndmin=2)
    np.testing.assert_allclose(rows, table.bfloat16()[groups["all"]].double().numpy(), rtol=1e-4)


def test_a_large_vocabulary_is_thinned_out_evenly(tmp_path, table, vocabulary, groups) -> None:
    save_projector(tmp_path, table, vocabulary, groups, most=3)
    rows = np.loadtxt(tmp_path / "tensors.tsv", delimiter="\t", ndmin=2)
    ids = groups["all"][[0, round((len(groups["all"]) - 1) / 2), -1]]
    np.testing.assert_allclose(rows, table[ids].double().numpy(), rtol=1e-4)
    assert len((tmp_path / "metadata.tsv").read_text(encoding="utf-8").splitlines()) == 4


def test_invalid_arguments_are_refused(tmp_path, table, vocabulary, groups) -> None:
    with pytest.raises(ValueError, match="`most` must be at least 1, got 0"):
        save_projector(tmp_path / "a", table, vocabulary, groups, most=0)
    nothing = {name: ids[:0] for name, ids in groups.items()}
    with pytest.raises(ValueError, match="The group `all` is empty"):
        save_projector(tmp_path / "b", table, vocabulary, nothing)
    assert list(tmp_path.iterdir()) == []
