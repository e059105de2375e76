"""How the vectors of a dictionary are written: float32, half precision, or product quantisation."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

Storage = Literal["float32", "float16", "product"]
# Of product quantisation: numbers that share a code of one byte, which names one of so many codewords.
SUBVECTOR, CODEWORDS = 8, 256
# Vectors that codewords are learned from.
_LEARNED_FROM = 65_536


def compress(vectors: Tensor, storage: Storage, seed: int = 0) -> Tensor:
    """What will be read back of vectors that are stored in one of these ways.

    "product" cuts each vector into parts of 8 numbers, and writes for each part the nearest of 256 codewords, which
    k-means finds (Jégou, Douze, Schmid 2011): one byte instead of 32.

    Args:
        vectors: (n, d) float32.
        storage: "float32", "float16" or "product".
        seed: of the codewords.

    Returns:
        (n, d) float32.

    Raises:
        ValueError: another storage; "product" where d is not a multiple of 8.
        ImportError: "product" without scikit-learn.

    Example:
        >>> compress(torch.tensor([[0.1]]), "float16").tolist()
        [[0.0999755859375]]
    """
    if storage not in get_args(Storage):
        raise ValueError(f"storage must be one of {', '.join(get_args(Storage))}, got {storage!r}")
    if storage == "float32":
        return vectors
    if storage == "float16":
        return vectors.half().float()
    if vectors.shape[1] % SUBVECTOR:
        raise ValueError(f"storage='product' needs a width that is a multiple of {SUBVECTOR}, got {vectors.shape[1]}")
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise ImportError("storage='product' needs scikit-learn: pip install \"defemb-callbacks[senses]\".") from error
    parts = []
    for part in vectors.numpy().reshape(len(vectors), -1, SUBVECTOR).transpose(1, 0, 2):
        part = np.ascontiguousarray(part)
        words = min(CODEWORDS, len(np.unique(part, axis=0)))
        chosen = np.random.default_rng(seed).permutation(len(part))[:_LEARNED_FROM]
        learned = MiniBatchKMeans(words, batch_size=4096, n_init=1, random_state=seed).fit(part[chosen])
        parts.append(torch.from_numpy(learned.cluster_centers_[learned.predict(part)]).float())
    return torch.cat(parts, dim=1)


def pack(vectors: Tensor, storage: Storage) -> dict[str, Tensor]:
    """Tensors to write for vectors that `compress` gave: `unpack` gives the same numbers again."""
    if storage == "float32":
        return {"vectors": vectors.contiguous()}
    if storage == "float16":
        return {"vectors": vectors.half().contiguous()}
    codes, words = [], []
    for part in vectors.split(SUBVECTOR, dim=1):
        different, code = part.unique(dim=0, return_inverse=True)
        codes.append(code.to(torch.uint8))
        words.append(torch.nn.functional.pad(different, (0, 0, 0, CODEWORDS - len(different))))
    return {"codes": torch.stack(codes, dim=1), "codewords": torch.stack(words)}


def unpack(tensors: dict[str, Tensor]) -> Tensor:
    """(n, d) float32 vectors of what `pack` gave.

    Example:
        >>> vectors = torch.arange(32.0).view(2, 16)
        >>> torch.equal(unpack(pack(vectors, "product")), vectors)
        True
    """
    if "vectors" in tensors:
        return tensors["vectors"].float()
    codes, words = tensors["codes"].long(), tensors["codewords"]
    return torch.cat([words[part][codes[:, part]] for part in range(len(words))], dim=1)
