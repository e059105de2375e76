"""Dot products of each state with the vectors of its own token."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


@torch.compiler.disable
def sampled_products(states: Tensor, vectors: Tensor, starts: Tensor, sense: Tensor) -> Tensor:
    """(m,): dot products of state i with the vectors that `sense` names from `starts[i]` to `starts[i + 1]`.

    Gathering the vectors of each state instead would write every one of them to memory, which takes twenty times as
    long.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        size = (len(states), len(vectors))
        wanted = torch.sparse_csr_tensor(starts, sense, states.new_zeros(len(sense)), size, check_invariants=False)
    products: Tensor = torch.sparse.sampled_addmm(wanted, states, vectors.T, beta=0.0).values()
    return products.clone()  # what torch.compile goes on with must not be a view of something sparse
