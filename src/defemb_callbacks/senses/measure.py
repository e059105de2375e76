"""How well a dictionary describes states: by group of tokens, how many senses, how near, how evenly used."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from defemb_callbacks.senses.dictionary import SenseDictionary

# States looked up at once.
_BLOCK = 8192


def measure_senses(
    dictionary: SenseDictionary, states: Tensor, token_ids: Tensor, groups: Mapping[str, Tensor]
) -> dict[str, float]:
    r"""Metrics of a dictionary on states of its tokens.

    - `defemb/senses/<group>`: mean number of senses of those of the group's tokens that have any.
    - `defemb/sense_error/<group>`: the squared distance of states to the senses that replace them, as a share of the
      states' squared distance to the mean state of their token, both summed over the group; 0 is perfect, and 1 as good
      as one vector a token. Tokens with one state are left out.
    - `defemb/sense_entropy/<group>`: how evenly senses are used, 0 to 1: entropy of the senses chosen for a token's
      states over its largest value, ln of the number of its senses or states, whichever is smaller; mean over the
      states of tokens with several senses.

    A group without such tokens has no value.

    Args:
        dictionary: on any device.
        states: (n, d) float32.
        token_ids: (n,) int64.
        groups: token ids by name, such as `frequency_groups` gives.

    Example:
        >>> from defemb_callbacks.vocabulary import Vocabulary
        >>> vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> vocabulary = Vocabulary(("bank",), ("bank",), (None,), uncased=True)
        >>> dictionary = SenseDictionary(torch.tensor([0, 2]), vectors, torch.ones(2, dtype=torch.int64), vocabulary)
        >>> found = measure_senses(dictionary, vectors, torch.tensor([0, 0]), {"all": torch.tensor([0])})
        >>> found["defemb/senses/all"], found["defemb/sense_error/all"], round(found["defemb/sense_entropy/all"], 3)
        (2.0, 0.0, 1.0)
    """
    size = len(dictionary.vocabulary)
    seen = torch.bincount(token_ids, minlength=size)
    means = torch.zeros(size, states.shape[1]).index_add_(0, token_ids, states) / seen.clamp(min=1)[:, None]
    lost, spread = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    numbers = dictionary.offsets.diff().cpu()
    used = torch.zeros(size, max(dictionary.most_senses, 1), dtype=torch.float64)
    device = dictionary.vectors.device
    for block, ids in zip(states.split(_BLOCK), token_ids.split(_BLOCK), strict=True):
        chosen = dictionary.choose(block.to(device), ids.to(device)).cpu()
        senses = dictionary.lookup(block.to(device), ids.to(device)).cpu()
        lost.index_add_(0, ids, (block - senses).square().sum(dim=1).double())
        spread.index_add_(0, ids, (block - means[ids]).square().sum(dim=1).double())
        known = chosen >= 0
        used.index_put_((ids[known], chosen[known]), torch.ones(int(known.sum()), dtype=torch.float64), accumulate=True)
    shares = used / seen.clamp(min=1)[:, None]
    entropy = torch.special.entr(shares).sum(dim=1) / torch.minimum(numbers, seen).clamp(min=2).double().log()
    found = {}
    for name, ids in groups.items():
        with_senses = ids[numbers[ids] > 0]
        several, varied = ids[(numbers[ids] > 1) & (seen[ids] > 1)], ids[seen[ids] > 1]
        if len(with_senses):
            found[f"defemb/senses/{name}"] = float(numbers[with_senses].double().mean())
        if float(spread[varied].sum()) > 0:
            found[f"defemb/sense_error/{name}"] = float(lost[varied].sum() / spread[varied].sum())
        if len(several):
            weight = seen[several].double()
            found[f"defemb/sense_entropy/{name}"] = float((entropy[several] * weight).sum() / weight.sum())
    return found
