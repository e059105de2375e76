"""What is measured of one model: its groups of tokens, its related words, its rows at the start."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.build import related_tokens
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.definitions import load_definitions
from defemb_callbacks.frequency import configured_rank, frequency_groups
from defemb_callbacks.metrics import measure_table
from defemb_callbacks.rows import embedding_weight, read_table
from defemb_callbacks.vocabulary import Vocabulary, read_vocabulary


class EmbeddingMonitor:
    """Measures a model's input embeddings, by frequency group, against the rows that they had when it was made.

    Args:
        model: its table is copied, as the reference of `drift` and `neighbour_overlap`.
        vocabulary: what the rows stand for.
        config: `frequency` and `group_edges`.
        pairs: (m, 2) int64 ids of related words; without, there is no `relation_auc`.
        counts: (vocabulary,) int64 token counts, for `frequency="training_data"`.

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
        self.pairs = pairs
        self.reference = read_table(model)

    def measure(self, model: nn.Module) -> dict[str, float]:
        """All metrics, `defemb/<metric>/<group>`."""
        return measure_table(read_table(model), self.groups, pairs=self.pairs, reference=self.reference)


def measure_embeddings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    definitions: Any = None,
    config: DefinitionEMBConfig | None = None,
) -> dict[str, float]:
    """The metrics of a model's input embeddings, by frequency group.

    Args:
        model: any model with token embeddings.
        tokenizer: its own.
        definitions: a dictionary with relations between words, for `relation_auc`; all that `load_definitions` takes.
        config: `frequency` and `group_edges`.

    Returns:
        `{"defemb/isotropy/rare": …, …}`, see `measure_table`.

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
    vocabulary = read_vocabulary(tokenizer, len(embedding_weight(model)))
    pairs = None if definitions is None else related_tokens(vocabulary, load_definitions(definitions))
    groups = frequency_groups(configured_rank(vocabulary, config), config.group_edges)
    return measure_table(read_table(model), groups, pairs=pairs)
