"""How the vectors of a dictionary are written: float32, half precision, or product quantisation."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from defemb_callbacks.senses.clustering import kmeans

Storage = Literal["float32", "float16", "product"]
# Of product quantisation: numbers that share a code of one byte, which names one of so many codewords.
SUBVECTOR, CODEWORDS = 8, 256
# Vectors that codewords are learned from, at most, and how long.
_LEARNED_FROM, _ITERATIONS = 8192, 20


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
    parts = vectors.view(len(vectors), -1, SUBVECTOR).transpose(0, 1)
    chosen = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))[:_LEARNED_FROM]
    number = torch.tensor([min(CODEWORDS, len(chosen))])
    size = torch.tensor([len(chosen)])
    quantised = []
    for part in parts:
        found = kmeans(part[chosen][None], size, number, iterations=_ITERATIONS, seed=seed)
        words = found.centres[0][found.counts[0] > 0]
        quantised.append(
            torch.cat([words[torch.cdist(some, words).argmin(dim=1)] for some in part.split(_LEARNED_FROM)])
        )
    return torch.cat(quantised, dim=1)


def pack(vectors: Tensor, storage: Storage) -> dict[str, Tensor]:
    """Tensors to write for vectors that `compress` gave: `unpack` gives the same numbers again.

    Raises:
        ValueError: "product" of vectors that were not compressed so.
    """
    if storage == "float32":
        return {"vectors": vectors.contiguous()}
    if storage == "float16":
        return {"vectors": vectors.half().contiguous()}
    codes, words = [], []
    for part in vectors.split(SUBVECTOR, dim=1):
        different, code = part.unique(dim=0, return_inverse=True)
        if len(different) > CODEWORDS:
            raise ValueError(
                f"a part of the vectors takes {len(different)} values, a code names {CODEWORDS}: make the dictionary "
                'with dictionary.compressed("product")'
            )
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
