"""What is measured of one model: its groups of tokens, its related words, its rows at the start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.definitions import load_definitions
from defemb_callbacks.metrics.measure import TableMeasure, spectra_by_group
from defemb_callbacks.metrics.pairs import rated_tokens, related_tokens
from defemb_callbacks.metrics.snapshot import TableSnapshot
from defemb_callbacks.vocabulary.frequency import configured_rank, frequency_groups
from defemb_callbacks.vocabulary.tokens import Vocabulary, read_vocabulary
from defemb_callbacks.weights.rows import output_weight, table_shape, whole_table

OUTPUT = "output_"  # what the names of the metrics of an output table begin with


class EmbeddingMonitor:
    """Measures a model's embeddings, by frequency group, against the rows that they had when it was made.

    The input table is measured, and an output table that is not tied to it.

    Args:
        model: its tables are copied, as the reference of `drift` and `neighbour_overlap`.
        vocabulary: what the rows stand for.
        config: `frequency`, `group_edges`, `monitor_sample` and `ratings`.
        pairs: (m, 2) int64 ids of related words; without, there is no `relation_auc`.
        counts: (vocabulary,) int64 token counts, for `frequency="training_data"`.

    Raises:
        FileNotFoundError, ValueError: unreadable ratings; a table with NaN or infinite values.

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
        self._measures = _measures(_tables(model), self.groups, vocabulary, config, pairs, compare=True)

    def measure(self, model: nn.Module) -> dict[str, float]:
        """All metrics, `defemb/<metric>/<group>`; those of the output table are `defemb/output_<metric>/<group>`."""
        return _figures(_tables(model), self._measures)

    def take_part(self, model: nn.Module) -> None:
        """Give the main process, which measures or takes a snapshot alone, this process's part of sharded tables."""
        _tables(model)

    def snapshot(
        self, model: nn.Module, metrics: Mapping[str, float] | None = None, watched: Tensor | None = None
    ) -> TableSnapshot:
        """What the pictures need of the input table now.

        Args:
            model: the model that is trained.
            metrics: of this very table, where they are known already; else it is measured.
            watched: (w,) int64 tokens whose nearest words are looked up.
        """
        tables, spectra = _tables(model), None
        table = tables[""]
        if metrics is None:
            spectra = spectra_by_group(table, self.groups)  # for the metrics and for the picture
            metrics = _figures(tables, self._measures, spectra=spectra)
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
    """The metrics of a model's input embeddings, and of untied output embeddings, by frequency group.

    Args:
        model: any model with token embeddings.
        tokenizer: its own.
        definitions: a dictionary with relations between words, for `relation_auc`; all that `load_definitions` takes.
        config: `frequency`, `group_edges`, `monitor_sample` and `ratings`.

    Returns:
        `{"defemb/isotropy/rare": …, …}`, see `measure_table`; those of an output table are called `defemb/output_…`.

    Raises:
        FileNotFoundError, ValueError: no such dictionary; unreadable ratings; a table with NaN or infinite values.

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
    return _figures(tables, _measures(tables, groups, vocabulary, config, pairs, compare=False))


def _tables(model: nn.Module) -> dict[str, Tensor]:
    """The tables themselves, copied only where they are sharded, by what the names of their metrics begin with."""
    tables = {"": whole_table(model)}
    # Of another length it has another vocabulary.
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
            reference=table.clone() if compare else None,
            ratings=ratings,
            sample=config.monitor_sample,
        )
        for name, table in tables.items()
    }


@torch.no_grad()
def _figures(
    tables: Mapping[str, Tensor], measures: Mapping[str, TableMeasure], spectra: Any = None
) -> dict[str, float]:
    figures = {}
    for prefix, measure in measures.items():
        for key, value in measure.measure(tables[prefix], spectra=None if prefix else spectra).items():
            figures[key.replace("defemb/", f"defemb/{prefix}", 1)] = value
    return figures
