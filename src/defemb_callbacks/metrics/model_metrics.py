"""Metrics of a model's embeddings, by frequency group of its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.definitions import load_definitions
from defemb_callbacks.metrics.catalog import OUTPUT
from defemb_callbacks.metrics.measure import TableMeasure, spectra_by_group
from defemb_callbacks.metrics.pairs import rated_tokens, related_tokens
from defemb_callbacks.metrics.snapshot import TableSnapshot
from defemb_callbacks.vocabulary.frequency import configured_rank, frequency_groups
from defemb_callbacks.vocabulary.tokens import Vocabulary, read_vocabulary
from defemb_callbacks.weights.rows import embedding_weight, output_weight, table_shape, whole_table
from defemb_callbacks.weights.sharding import shares_memory


class EmbeddingMonitor:
    """Measures a model's embeddings by frequency group and compares them with their state at construction.

    The input table is measured, and the output table if it is not tied to it.

    Args:
        model: The model. Its tables are copied as the reference of `drift` and `neighbour_overlap`.
        vocabulary: The tokens of its rows.
        config: Settings; `frequency`, `group_edges`, `monitor_sample` and `ratings` are used.
        pairs: Ids of related words, (m, 2) int64; `None` leaves out `relation_auc`.
        counts: Token counts, (vocabulary,) int64, for `frequency="training_data"`.

    Raises:
        FileNotFoundError: If the file of ratings does not exist.
        ValueError: If the ratings cannot be read, or a table contains NaN or infinite values.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(vocab_size=40, hidden_size=4, num_hidden_layers=1, num_attention_heads=1))
        >>> words = tuple(f"word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(40))
        >>> monitor = EmbeddingMonitor(model, Vocabulary(words, words, (None,) * 40, True), DefinitionEMBConfig())
        >>> monitor.measure(model)["defemb/drift/rare"]
        0.0
    """

    def __init__(
        self,
        model: nn.Module,
        vocabulary: Vocabulary,
        config: DefinitionEMBConfig,
        pairs: Tensor | None = None,
        counts: Tensor | None = None,
    ) -> None:
        self.groups = frequency_groups(configured_rank(vocabulary, config, counts), config.group_edges)
        self._words = vocabulary.word_ids
        tables = _tables(model)
        self._measures = _measures(tables, self.groups, vocabulary, config, pairs, compare=True)
        for name, measure in self._measures.items():
            weight = embedding_weight(model, "output" if name == OUTPUT else "input")
            measure.keep_reference(shared=shares_memory(tables[name], weight))

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Compute all metrics: `defemb/<metric>/<group>`, and `defemb/output_<metric>/<group>` for the output table."""
        return _measure(_tables(model), self._measures)

    def take_part(self, model: nn.Module) -> None:
        """Gather sharded tables on the other processes while the main process alone measures or takes a snapshot."""
        _tables(model)

    def snapshot(
        self, model: nn.Module, metrics: Mapping[str, float] | None = None, watched: Tensor | None = None
    ) -> TableSnapshot:
        """Take a snapshot of the input table for pictures.

        Args:
            model: The model in training.
            metrics: Metrics of the current table, if they are already known; otherwise they are computed.
            watched: Ids of the tokens whose nearest words are looked up, (w,) int64.
        """
        tables, spectra = _tables(model), None
        table = tables[""]
        if metrics is None:
            spectra = spectra_by_group(table, self.groups)  # used by the metrics and the picture
            metrics = _measure(tables, self._measures, spectra=spectra)
        spectrum = spectra["all"] if spectra else None
        return TableSnapshot.take(
            table, self.groups, metrics=dict(metrics), spectrum=spectrum, watched=watched, among=self._words
        )


def measure_embeddings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    definitions: Any = None,
    config: DefinitionEMBConfig | None = None,
) -> dict[str, float]:
    """Measure a model's input embeddings, and its output embeddings if they are not tied, by frequency group.

    Args:
        model: Any model with token embeddings.
        tokenizer: The tokenizer of the model.
        definitions: Dictionary with relations between words, for `relation_auc`; anything that `load_definitions`
            accepts.
        config: Settings; `frequency`, `group_edges`, `monitor_sample` and `ratings` are used.

    Returns:
        `{"defemb/isotropy/rare": …, …}`, see `measure_table`; metrics of the output table are called `defemb/output_…`.

    Raises:
        FileNotFoundError: If the dictionary or the file of ratings does not exist.
        ValueError: If the ratings cannot be read, or a table contains NaN or infinite values.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordLevel({"[UNK]": 0, "cat": 1, "dog": 2}, unk_token="[UNK]"))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
        >>> model = BertModel(BertConfig(vocab_size=3, hidden_size=4, num_hidden_layers=1, num_attention_heads=1))
        >>> sorted(measure_embeddings(model, tokenizer))[0]
        'defemb/average_cosine/all'
    """
    config = config or DefinitionEMBConfig()
    vocabulary = read_vocabulary(tokenizer, table_shape(model)[0])
    pairs = None if definitions is None else related_tokens(vocabulary, load_definitions(definitions))
    groups = frequency_groups(configured_rank(vocabulary, config), config.group_edges)
    tables = _tables(model)
    return _measure(tables, _measures(tables, groups, vocabulary, config, pairs, compare=False))


def _tables(model: nn.Module) -> dict[str, Tensor]:
    """Return the tables by prefix of their metrics' names; only sharded tables are copied."""
    tables = {"": whole_table(model)}
    # An output table with another number of rows has another vocabulary.
    if output_weight(model) is not None and table_shape(model, "output")[0] == len(tables[""]):
        tables[OUTPUT] = whole_table(model, "output")
    return tables


def _measures(
    tables: Mapping[str, Tensor],
    groups: dict[str, Tensor],
    vocabulary: Vocabulary,
    config: DefinitionEMBConfig,
    pairs: Tensor | None,
    compare: bool,
) -> dict[str, TableMeasure]:
    ratings = None if config.ratings is None else rated_tokens(vocabulary, config.ratings)
    return {
        name: TableMeasure(
            groups,
            pairs=pairs,
            reference=table if compare else None,
            ratings=ratings,
            sample=config.monitor_sample,
        )
        for name, table in tables.items()
    }


@torch.no_grad()
def _measure(
    tables: Mapping[str, Tensor], measures: Mapping[str, TableMeasure], spectra: Any = None
) -> dict[str, float]:
    metrics = {}
    for prefix, measure in measures.items():
        for key, value in measure.measure(tables[prefix], spectra=None if prefix else spectra).items():
            metrics[key.replace("defemb/", f"defemb/{prefix}", 1)] = value
    return metrics
