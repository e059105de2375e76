"""`isotropy` and `relation_auc` as measurements for the `evaluate` library; nothing is loaded from the Hub.

`defemb_callbacks.metrics` does not import this module, because `evaluate` is optional:
`pip install "defemb-callbacks[examples]"`.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Features, List, Value
from numpy.typing import NDArray
from torch import Tensor

from defemb_callbacks.metrics import isotropy, relation_auc

try:
    import evaluate
except ImportError as error:
    raise ImportError(
        'These measurements require the library evaluate. Run pip install "defemb-callbacks[examples]", or use the '
        "functions isotropy and relation_auc of defemb_callbacks.metrics, which do not require it."
    ) from error


_DTYPES = {"default": "float32", "float32": "float32", "float64": "float64"}

# Numbers per batch: rows reach the cache as Python floats, which take ten times the memory, so a batch takes 8 MB.
BATCH_SIZE = 1 << 18


class TableMeasurement(evaluate.Measurement, ABC):
    """Base class of measurements of a table: writes its rows to evaluate's cache and reads them back as a tensor."""

    summary: ClassVar[str]
    reference: ClassVar[str]
    url: ClassVar[str]

    @abstractmethod
    def _compute(self, *args: Any, **settings: Any) -> dict[str, float]:
        """Return the result by name of the metric; evaluate passes the rows as `data`."""

    def _info(self) -> evaluate.MeasurementInfo:
        if self.config_name not in _DTYPES:
            raise ValueError(f"config_name must be 'float32' (the default) or 'float64', got {self.config_name!r}.")
        info = evaluate.MeasurementInfo(
            description=self.summary,
            citation=self.reference,
            inputs_description=inspect.getdoc(self),
            features=Features({"data": List(Value(_DTYPES[self.config_name]))}),
            reference_urls=[self.url],
            module_type="measurement",
        )
        # Without a format, `_compute` gets lists of Python floats. The constructor refuses a format for features that
        # are lists, because some formats return objects for them; Arrow returns them unchanged.
        info.format = "arrow"
        return info

    def add_batch(self, *, data: Any) -> None:
        """Add rows to the table.

        Args:
            data: Rows, (n, d), as lists, an array or a tensor.

        Raises:
            ValueError: If the rows are not a table of numbers. No row is added then.
        """
        rows = _as_rows(data, _DTYPES[self.config_name])
        step = max(1, BATCH_SIZE // max(1, rows.shape[1]))
        for start in range(0, max(1, len(rows)), step):
            super().add_batch(data=rows[start : start + step].tolist())


class Isotropy(TableMeasurement):
    """I(E), the evenness of the partition function over directions; in (0, 1], higher is more isotropic.

    Computed by `defemb_callbacks.metrics.isotropy`. `add(data=row)` and `add_batch(data=rows)` build the table in
    steps.

    Args:
        data: Table of vectors, one per row, (n, d), as lists, an array or a tensor. It is stored as float32, or as
            float64 by `Isotropy("float64")`.
        both_signs: Use both c and −c for each eigenvector c, whose sign is arbitrary; `False` is the authors' form
            with one sign.

    Returns:
        `{"isotropy": float}`

    Raises:
        ValueError: If there are no rows, rows have different lengths, or values are NaN or infinite.

    Example:
        >>> measurement = Isotropy(keep_in_memory=True)
        >>> result = measurement.compute(data=[[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> round(result["isotropy"], 4)
        0.534
    """

    summary = (
        "Isotropy I(E) of a table of embeddings: the smallest over the largest value of the partition function "
        "Z(c) = sum of exp(c·e) over the rows e, for c among the eigenvectors of the table's Gram matrix. "
        "It is 1 if the rows prefer no direction, and near 0 if all of them share one."
    )
    reference = """@inproceedings{mu2018allbutthetop,
  title = {All-but-the-Top: Simple and Effective Postprocessing for Word Representations},
  author = {Mu, Jiaqi and Viswanath, Pramod},
  booktitle = {International Conference on Learning Representations},
  year = {2018}
}"""
    url = "https://arxiv.org/abs/1702.01417"

    def _compute(self, data: pa.ChunkedArray, both_signs: bool = True) -> dict[str, float]:
        return {"isotropy": isotropy(_as_table(data), both_signs=both_signs)}


class RelationAUC(TableMeasurement):
    """Probability that related rows have a larger cosine than re-paired ones; in [0, 1], 0.5 is chance.

    Computed by `defemb_callbacks.metrics.relation_auc`. `add(data=row)` and `add_batch(data=rows)` build the table in
    steps. Pairs passed to the constructor are used if `compute` gets none, as in `evaluate.combine`.

    Args:
        data: Table of vectors, one per row, (n, d), as lists, an array or a tensor. It is stored as float32, or as
            float64 by `RelationAUC("float64")`.
        pairs: Row ids of related words, (m, 2) integers.
        centred: Subtract the mean unit row of all words in the pairs; `False` uses the plain cosines.
        seed: Seed of the shuffle that re-pairs the words.

    Returns:
        `{"relation_auc": float}`

    Raises:
        ValueError: If there are no rows, rows have different lengths, values are NaN or infinite, there are no pairs,
            or pairs are out of range.
        TypeError: If the pairs are not integers.

    Example:
        >>> measurement = RelationAUC(keep_in_memory=True)
        >>> table = [[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]
        >>> measurement.compute(data=table, pairs=[[0, 1], [2, 3]])
        {'relation_auc': 1.0}
    """

    summary = (
        "Area under the ROC curve of cosine similarity as a classifier of pairs of related words against the same "
        "words paired at random. It is 0.5 if the embeddings are uninformative about the relation, and 1 if they "
        "identify it perfectly."
    )
    reference = """@article{mann1947test,
  title = {On a Test of Whether one of Two Random Variables is Stochastically Larger than the Other},
  author = {Mann, Henry B. and Whitney, Donald R.},
  journal = {The Annals of Mathematical Statistics},
  volume = {18},
  number = {1},
  pages = {50--60},
  year = {1947}
}"""
    url = "https://doi.org/10.1214/aoms/1177730491"

    def __init__(self, config_name: str | None = None, *, pairs: Any = None, **settings: Any) -> None:
        super().__init__(config_name, **settings)
        self.pairs = pairs

    def _compute(
        self, data: pa.ChunkedArray, pairs: Any = None, centred: bool = True, seed: int = 0
    ) -> dict[str, float]:
        pairs = self.pairs if pairs is None else pairs
        if pairs is None:
            raise ValueError("relation_auc needs pairs of related rows. Call compute(data=..., pairs=[[0, 1], ...]).")
        pairs = torch.as_tensor(pairs)
        if not pairs.is_floating_point():
            pairs = pairs.long()  # pairs may be NumPy's int32
        return {"relation_auc": relation_auc(_as_table(data), pairs, centred=centred, seed=seed)}


def _as_rows(data: Any, dtype: str) -> NDArray[Any]:
    if isinstance(data, Tensor):
        data = data.detach().to("cpu", getattr(torch, dtype)).numpy()  # NumPy has no bfloat16
    try:
        rows = np.asarray(data, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"data must be an (n, d) table of numbers, its rows of equal length: {error}.") from error
    if rows.ndim != 2 and rows.size:
        raise ValueError(f"data must have shape (n, d), got {rows.shape}. Use add(data=row) for a single row.")
    return rows if rows.ndim == 2 else rows.reshape(0, 0)


def _as_table(column: pa.ChunkedArray) -> Tensor:
    """Return the cached rows as one (n, d) tensor; a single copy of what Arrow maps from the file."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    if not len(lengths):
        return torch.empty(0, 0)
    others = (lengths != lengths[0]).nonzero()[0]
    if len(others):
        row = int(others[0])
        raise ValueError(
            f"row {row} has {lengths[row]} entries, row 0 has {lengths[0]}. All rows must have the same length."
        )
    values = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks])
    return torch.from_numpy(values.reshape(len(lengths), int(lengths[0])))
