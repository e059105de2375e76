"""From a model and texts to a calibrated `SentenceTransformer`.

Not imported by `defemb_callbacks.sentence`, as sentence-transformers is an extra.
"""

from __future__ import annotations

import copy
import inspect
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from tqdm.auto import tqdm

from defemb_callbacks.metrics import average_cosine, effective_rank, isoscore
from defemb_callbacks.metrics.blocks import checked, unit_rows
from defemb_callbacks.sentence.fit import fit_flow
from defemb_callbacks.sentence.flow import EmbeddingFlow
from defemb_callbacks.sentence.linear import LinearCalibration
from defemb_callbacks.sentence.modules import SentenceTransformer, Transformer, calibration_module, pooling_modules
from defemb_callbacks.sentence.whitening import WhiteningFitter

logger = logging.getLogger(__name__)
Method = Literal["whitening", "flow", "standardization", "top_removal"]

# Texts whose vectors are held at once, where not all of them are needed.
_CHUNK = 4096


class CalibrationRefused(ValueError):
    """Calibration is expected to harm, and was not forced."""


@dataclass(frozen=True)
class CalibratedModel:
    """What `calibrate` gives.

    Attributes:
        model: from texts to calibrated vectors.
        advice: what was measured on the uncalibrated vectors of a sample, and concluded.
        before: uniformity, average cosine, IsoScore and effective rank of these vectors.
        after: the same of the calibrated ones.
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
    """Fit a calibration to the sentence embeddings of texts, and put it at the end of their encoder.

    No labels are needed, and the encoder stays as it is. `calibration_advice` looks at the vectors of a sample first.

    Save the result with `.model.save_pretrained(folder)`. Unless it is a flow, it then loads with
    `SentenceTransformer(folder)`, also where this package is not installed; for a flow see `FlowCalibration`.

    Args:
        model: folder or hub id of a checkpoint of sentence-transformers or transformers, or a `SentenceTransformer`. It
            stays as it is; its modules become part of the result, with another pooling a copy of its Transformer.
        texts: like those that will be compared; empty ones and repetitions are left out.
        method: "whitening", "flow", "standardization" or "top_removal".
        pooling: see `pooling_modules`; `None` keeps the model's own modules, or for a checkpoint of transformers those
            that sentence-transformers gives it.
        sample: how many texts the advice is based on.
        force: go on where the advice is that calibration harms.
        batch_size: texts encoded at once.
        **settings: of the method: see `WhiteningFitter` for "whitening" (components, shrinkage) and "top_removal"
            (directions), `fit_flow` for "flow".

    Raises:
        TypeError: `texts` is a single string, or a setting that the method does not have.
        ValueError: fewer than 100 different texts; an unknown method or pooling; a setting outside its range.
        CalibrationRefused: calibration is expected to harm, and `force` is not set; a `ValueError`.

    Example:
        >>> calibrated = calibrate("bert-base-uncased", sentences, pooling="first_last")  # doctest: +SKIP
        >>> calibrated.model.save_pretrained("bert-base-whitened")  # doctest: +SKIP
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    fit: Callable[..., Any] = fit_flow if method == "flow" else getattr(WhiteningFitter, method)
    inspect.signature(fit).bind_partial(None, **settings)
    if isinstance(texts, str):
        raise TypeError("texts must be a sequence of strings, got one string; put it into a list")
    texts = list(dict.fromkeys(text for text in texts if text.strip()))
    if len(texts) < FEWEST:
        raise ValueError(f"calibration needs at least {FEWEST} different texts, got {len(texts)}")
    encoder = sentence_encoder(model, pooling)
    step = max(1, len(texts) // sample)
    vectors = torch.cat(list(_encoded(encoder, texts[::step], batch_size)))
    for name, value in settings.items():
        if name in ("components", "directions") and value is not None and not 1 <= value <= vectors.shape[1]:
            raise ValueError(f"{name} must be from 1 to the width {vectors.shape[1]}, got {value}")
    advice = calibration_advice(vectors)
    if advice.verdict == "harms" and not force:
        raise CalibrationRefused(f"{advice.reason} Nothing was done; force=True calibrates nevertheless.")
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
    """What `calibrate` calibrates: a model, or its Transformer with another pooling. A given model stays as it is.

    Raises:
        ValueError: an unknown pooling, a layer that is not there, or a model that does not start with a Transformer.
    """
    encoder = SentenceTransformer(str(model)) if isinstance(model, (str, Path)) else model
    if pooling is None:
        return encoder
    if not isinstance(encoder[0], Transformer):
        kind = type(encoder[0]).__name__
        raise ValueError(f"pooling={pooling!r} reads a Transformer, but the model starts with {kind}; leave it out")
    transformer = copy.deepcopy(encoder[0]) if encoder is model else encoder[0]
    return _like(encoder, pooling_modules(transformer, pooling))


def with_calibration(
    encoder: SentenceTransformer, calibration: LinearCalibration | EmbeddingFlow
) -> SentenceTransformer:
    """The modules of an encoder and, after them, a calibration that was fitted on its vectors."""
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
    """The vectors, float32 on the CPU, chunk by chunk."""
    with tqdm(total=len(texts), desc="Encoding texts", unit="text", disable=None) as progress:
        for start in range(0, len(texts), _CHUNK):
            chunk = texts[start : start + _CHUNK]
            # What comes after these modules sees whole vectors.
            with encoder.truncate_embeddings(None):
                vectors = encoder.encode(chunk, batch_size=batch_size, show_progress_bar=False, convert_to_tensor=True)
            yield vectors.float().cpu()
            progress.update(len(chunk))


def _isotropy(vectors: Tensor) -> dict[str, float]:
    metrics = (uniformity, average_cosine, isoscore, effective_rank)
    return {metric.__name__: metric(vectors) for metric in metrics}


Verdict = Literal["helps", "unclear", "harms"]

# Where measured gains of whitening were large, and where there were losses: see `calibration_advice`.
NARROW = -2.6  # uniformity
DIRECTIONS, SHARE = 70, 0.2  # the smaller of a number of directions and a share of the width
FEWEST = 100
_REASONS: dict[Verdict, str] = {
    "helps": "they crowd in a small part of it, as those of encoders that were not trained to compare sentences. "
    "Calibration is likely to help.",
    "unclear": "they are spread, but over few directions. Calibration changes little, and may help or harm: compare "
    "both on rated pairs of your own.",
    "harms": "they are spread over many directions already, as those of encoders that were trained long to compare "
    "sentences. Calibration is likely to harm.",
}


@dataclass(frozen=True)
class CalibrationAdvice:
    """What `calibration_advice` has measured, and concludes.

    Attributes:
        uniformity: see the function of this name; from 0, all in one point, to about −4, all over the sphere.
        average_cosine: of two different texts.
        directions: among how many the centred vectors share their variance out, 1 to d: `isoscore`, as a number.
        verdict: "helps", "unclear" or "harms": what calibration is expected to do to similarities.
        reason: the same in words.
    """

    uniformity: float
    average_cosine: float
    directions: float
    verdict: Verdict
    reason: str


def calibration_advice(vectors: Tensor) -> CalibrationAdvice:
    """Whether calibration is likely to help these sentence embeddings: by how they are spread.

    Contrastive training pulls texts apart until they are uniform on the sphere (Wang and Isola 2020); what is left of
    anisotropy has a meaning then, which calibration takes away.

    The limits rest on little: English sentences of STS-B, and all-MiniLM-L6-v2, with its layers and some of them
    trained further. There, whitening to 128 gained 0.05 to 0.16 in Spearman's ρ on five poolings whose uniformity is
    above −2.6; lost 0.01 to 0.02 on two that share their variance out among 80 and 106 directions; and gained 0.00 to
    0.03 on lower layers after 75 to 200 steps of contrastive training, which are as uniform but use fewer directions.

    Args:
        vectors: (n, d), embeddings of different texts of the kind that will be compared, about 1,000 of them.

    Raises:
        TypeError, ValueError: not such a tensor, NaN or infinity, or fewer than 100 vectors.

    Example:
        >>> import torch
        >>> vectors = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
        >>> calibration_advice(vectors).verdict, calibration_advice(vectors + 1).verdict
        ('harms', 'helps')
    """
    vectors = checked(vectors, "vectors")
    count, width = vectors.shape
    if count < FEWEST:
        raise ValueError(f"advice needs at least {FEWEST} vectors of different texts, got {count}")
    found, cosine = uniformity(vectors), average_cosine(vectors)
    directions = 1 + isoscore(vectors) * (width - 1)
    verdict: Verdict = "helps"
    if found < NARROW:
        verdict = "harms" if directions >= min(DIRECTIONS, SHARE * width) else "unclear"
    figures = (
        f"The vectors have uniformity {found:.2f} (0: all in one point, -4: the whole sphere), average cosine "
        f"{cosine:.2f}, and {directions:.0f} of {width} directions in use"
    )
    return CalibrationAdvice(found, cosine, directions, verdict, f"{figures}: {_REASONS[verdict]}")


def uniformity(vectors: Tensor) -> float:
    r"""How uniformly directions fill the sphere; lower is more uniform.

    .. math:: \ln \frac{2}{n (n - 1)} \sum_{i < j} e^{-2 \lVert \hat u_i - \hat u_j \rVert^2}

    (Wang and Isola 2020, arXiv 2005.10242, t = 2). At most 0, where all directions are the same; about −4 + 8 / d for
    n ≫ d directions without preference. Unchanged by lengths and rotation, not by a shift. Takes O(n²d): give a sample.

    Args:
        vectors: (n, d), any floating dtype, any device; a zero vector has distance 1 to all others.

    Raises:
        TypeError, ValueError: not such a tensor, NaN or infinity, or fewer than two vectors.

    Example:
        >>> import torch
        >>> round(uniformity(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-2.0, 0.0]])), 4)
        -4.3963
    """
    vectors = checked(vectors, "vectors")
    count = len(vectors)
    if count < 2:
        raise ValueError(f"uniformity needs at least 2 vectors, got {count}")
    directions = unit_rows(vectors)
    squares = directions.square().sum(dim=1)
    total = 0.0
    for rows, lengths in zip(directions.split(1024), squares.split(1024), strict=True):
        distances = lengths[:, None] + squares - 2 * rows @ directions.T
        total += float((-2 * distances).exp().sum())
    same = count  # each vector with itself: e⁰
    return math.log((total - same) / (count * (count - 1)))
