"""Calibrate the sentence embeddings of a model, without labels, as a `SentenceTransformer`.

`defemb_callbacks.sentence` does not import this module, which requires the optional extra `sentence`.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from defemb_callbacks.metrics import average_cosine, effective_rank, isoscore
from defemb_callbacks.progress import ProgressBar
from defemb_callbacks.sentence.advice import MIN_VECTORS, CalibrationAdvice, calibration_advice, uniformity
from defemb_callbacks.sentence.fit import fit_flow
from defemb_callbacks.sentence.flow import EmbeddingFlow
from defemb_callbacks.sentence.linear import LinearCalibration
from defemb_callbacks.sentence.modules import SentenceTransformer, Transformer, calibration_module, pooling_modules
from defemb_callbacks.sentence.whitening import WhiteningFitter

logger = logging.getLogger(__name__)
Method = Literal["whitening", "flow", "standardization", "top_removal"]

# Texts encoded at a time; methods other than the flow need no more vectors in memory.
_CHUNK = 4096


class CalibrationRefused(ValueError):
    """Calibration is expected to harm and was not forced."""


@dataclass(frozen=True)
class CalibratedModel:
    """Result of `calibrate`.

    Attributes:
        model: The calibrated model.
        advice: Advice based on uncalibrated vectors of a sample of the texts.
        before: Uniformity, average cosine, IsoScore and effective rank of these vectors.
        after: The same metrics after calibration.
    """

    model: SentenceTransformer
    advice: CalibrationAdvice
    before: dict[str, float]
    after: dict[str, float]


def calibrate(
    model: str | Path | SentenceTransformer,
    texts: Sequence[str],
    method: Method = "whitening",
    *,
    pooling: str | None = None,
    sample: int = 1000,
    force: bool = False,
    batch_size: int = 32,
    **settings: Any,
) -> CalibratedModel:
    """Fit a calibration to the sentence embeddings of texts, and append it to their encoder.

    No labels are needed, and the encoder is not changed. `calibration_advice` is computed on a sample first.

    Save the result with `.model.save_pretrained(folder)`. Unless the method is a flow, `SentenceTransformer(folder)`
    loads it without this package; for a flow, see `FlowCalibration`.

    Args:
        model: A `SentenceTransformer`, or the folder or hub id of a checkpoint of sentence-transformers or
            transformers. It is not changed; the result shares its modules, or has a copy of its Transformer if
            `pooling` is given.
        texts: Texts like those that will be compared; duplicates and empty texts are dropped.
        method: `"whitening"`, `"flow"`, `"standardization"` or `"top_removal"`.
        pooling: See `pooled_layers`; `None` keeps the modules of the model, or the default modules of
            sentence-transformers for a checkpoint of transformers.
        sample: Number of texts that the advice is based on.
        force: Calibrate even if calibration is expected to harm.
        batch_size: Number of texts per forward pass.
        **settings: Settings of the method: see `WhiteningFitter` for `"whitening"` (`components`, `shrinkage`) and
            `"top_removal"` (`directions`), and `fit_flow` for `"flow"`.

    Returns:
        The calibrated model, with metrics before and after.

    Raises:
        TypeError: If `texts` is a single string, or the method does not have one of the settings.
        ValueError: If there are fewer than 100 distinct texts, the method or pooling is unknown, or a setting is out of
            range.
        CalibrationRefused: If calibration is expected to harm and `force` is not set; a `ValueError`.

    Example:
        >>> calibrated = calibrate("bert-base-uncased", sentences, pooling="first_last")  # doctest: +SKIP
        >>> calibrated.model.save_pretrained("bert-base-whitened")  # doctest: +SKIP
    """
    if method not in get_args(Method):
        raise ValueError(f"`method` must be one of {', '.join(get_args(Method))}, got {method!r}.")
    fit: Callable[..., Any] = fit_flow if method == "flow" else getattr(WhiteningFitter, method)
    inspect.signature(fit).bind_partial(None, **settings)
    if isinstance(texts, str):
        raise TypeError("`texts` must be a list of strings, got a single string. Put it into a list.")
    texts = list(dict.fromkeys(text for text in texts if text.strip()))
    if len(texts) < MIN_VECTORS:
        raise ValueError(f"`texts` must contain at least {MIN_VECTORS} distinct texts, got {len(texts)}.")
    encoder = sentence_encoder(model, pooling)
    step = max(1, len(texts) // sample)
    vectors = torch.cat(list(_encoded(encoder, texts[::step], batch_size)))
    for name, value in settings.items():
        if name in ("components", "directions") and value is not None and not 1 <= value <= vectors.shape[1]:
            raise ValueError(f"`{name}` must be between 1 and the width {vectors.shape[1]}, got {value}.")
    advice = calibration_advice(vectors)
    if advice.verdict == "harms" and not force:
        raise CalibrationRefused(f"{advice.reason} Pass force=True to calibrate anyway.")
    logger.log(logging.INFO if advice.verdict == "helps" else logging.WARNING, advice.reason)
    calibration: LinearCalibration | EmbeddingFlow
    if method == "flow":
        calibration = fit_flow(torch.cat(list(_encoded(encoder, texts, batch_size))), **settings)
    else:
        fitter = WhiteningFitter()
        for chunk in _encoded(encoder, texts, batch_size):
            fitter.update(chunk)
        calibration = fit(fitter, **settings)
    with torch.no_grad():
        after = _isotropy(calibration(vectors))
    return CalibratedModel(with_calibration(encoder, calibration), advice, _isotropy(vectors), after)


def sentence_encoder(model: str | Path | SentenceTransformer, pooling: str | None = None) -> SentenceTransformer:
    """Load a model, and optionally replace its pooling; a given `SentenceTransformer` is not changed.

    Args:
        model: A `SentenceTransformer`, or the folder or hub id of a checkpoint.
        pooling: See `pooled_layers`; `None` keeps the modules of the model.

    Raises:
        ValueError: If the pooling is unknown or reads a layer that is out of range, or if the model does not start with
            a Transformer.
    """
    encoder = SentenceTransformer(str(model)) if isinstance(model, (str, Path)) else model
    if pooling is None:
        return encoder
    if not isinstance(encoder[0], Transformer):
        kind = type(encoder[0]).__name__
        raise ValueError(
            f"pooling={pooling!r} requires a Transformer, but the first module is a {kind}. Use pooling=None."
        )
    transformer = copy.deepcopy(encoder[0]) if encoder is model else encoder[0]
    return _like(encoder, pooling_modules(transformer, pooling))


def with_calibration(
    encoder: SentenceTransformer, calibration: LinearCalibration | EmbeddingFlow
) -> SentenceTransformer:
    """Append a calibration to the modules of an encoder that it was fitted on."""
    return _like(encoder, [*encoder, calibration_module(calibration)])


def _like(encoder: SentenceTransformer, modules: list[Any]) -> SentenceTransformer:
    return SentenceTransformer(
        modules=modules,
        device=str(encoder.device),
        prompts={name: prompt for name, prompt in encoder.prompts.items() if prompt is not None},
        default_prompt_name=encoder.default_prompt_name,
        similarity_fn_name=encoder.similarity_fn_name,
    )


def _encoded(encoder: SentenceTransformer, texts: Sequence[str], batch_size: int) -> Iterator[Tensor]:
    """Sentence embeddings, float32 on the CPU, chunk by chunk."""
    with ProgressBar(len(texts), "Encoding texts", "text") as progress:
        for start in range(0, len(texts), _CHUNK):
            chunk = texts[start : start + _CHUNK]
            # A calibration is applied before vectors are truncated.
            with encoder.truncate_embeddings(None):
                vectors = encoder.encode(chunk, batch_size=batch_size, show_progress_bar=False, convert_to_tensor=True)
            yield vectors.float().cpu()
            progress.update(len(chunk))


def _isotropy(vectors: Tensor) -> dict[str, float]:
    metrics = (uniformity, average_cosine, isoscore, effective_rank)
    return {metric.__name__: metric(vectors) for metric in metrics}
