"""The choice between sets of features: the one that predicts left-out rows of the model at hand best."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defemb_callbacks.reconstruction.ridge import RidgeRows, cross_fitted_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChosenRows(RidgeRows):
    """Cross-fitted predictions from the chosen features.

    Attributes:
        features: Names of the features.
    """

    features: list[str]


def names_to_compute(candidates: Sequence[Sequence[str]]) -> list[str]:
    """Return the features that contain all candidates, so that each definition is encoded only once.

    Args:
        candidates: Sets of features.

    Example:
        >>> names_to_compute([["layers", "bag"], ["mean", "bag"]])
        ['layers', 'bag']
    """
    names = list(dict.fromkeys(name for candidate in candidates for name in candidate))
    return [name for name in names if name != "mean" or "layers" not in names]  # the last of "layers" is "mean"


def select_features(features: Tensor, names: Sequence[str], chosen: Sequence[str], widths: Mapping[str, int]) -> Tensor:
    """Return the columns of some features.

    Args:
        features: (n, F), the features `names` side by side.
        names: Names of these features, from `names_to_compute`.
        chosen: Names of the features to return.
        widths: Width of each feature. That of "layers", which depends on the number of layers, may be absent.

    Returns:
        (n, F'), in the order of `chosen`; without a copy if these are all features.

    Example:
        >>> features = torch.tensor([[1, 2, 3, 4, 5, 6, 9]])
        >>> widths = {"mean": 2, "bag": 1}
        >>> select_features(features, ["layers", "bag"], ["mean", "bag"], widths)
        tensor([[5, 6, 9]])
    """
    if list(names) == list(chosen):
        return features
    widths = {"layers": features.shape[1] - sum(widths[name] for name in names if name != "layers"), **widths}
    blocks = dict(zip(names, features.split([widths[name] for name in names], dim=1), strict=True))
    if "layers" in blocks:
        blocks["mean"] = blocks["layers"][:, -widths["mean"] :]
    return torch.cat([blocks[name] for name in chosen], dim=1)


def best_rows(
    features: Tensor,
    names: Sequence[str],
    candidates: Sequence[Sequence[str]],
    widths: Mapping[str, int],
    targets: Tensor,
    *,
    groups: Tensor,
    device: torch.device,
) -> ChosenRows:
    """Predict rows from each candidate, and return the predictions with the highest held-out R².

    Args:
        features: (n, F), the features `names` side by side.
        names: Names of these features, from `names_to_compute`.
        candidates: Sets of features; of equally good ones the first is chosen.
        widths: See `select_features`.
        targets: (n, d), the rows of the model's table.
        groups: See `cross_fitted_rows`.
        device: See `cross_fitted_rows`; the CPU if its memory does not suffice.
    """
    best: ChosenRows | None = None
    for candidate in candidates:
        x = select_features(features, names, candidate, widths)
        try:
            fitted = cross_fitted_rows(x, targets, groups=groups, device=device)
        except torch.OutOfMemoryError:
            logger.info("The ridge regression does not fit into the memory of %s; it is computed on the CPU.", device)
            fitted, device = None, torch.device("cpu")
        if fitted is None:  # after the exception is gone, which keeps tensors on the device
            fitted = cross_fitted_rows(x, targets, groups=groups, device=device)
        logger.debug("Features %s: held-out R² %.4f.", ", ".join(candidate), fitted.r_squared)
        if best is None or fitted.r_squared > best.r_squared:
            best = ChosenRows(**vars(fitted), features=list(candidate))
    assert best is not None
    return best
