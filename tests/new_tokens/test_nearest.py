"""nearest_tokens: against all cosines at once."""

from __future__ import annotations

import torch

from defemb_callbacks.new_tokens import nearest
from defemb_callbacks.new_tokens.nearest import nearest_tokens


def test_nearest_rows_are_those_of_the_full_matrix(monkeypatch):
    monkeypatch.setattr(nearest, "_BLOCK", 7)
    table = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    centre, among = table.float().mean(dim=0), torch.arange(0, 60, 2)
    terms = [[4, 6], [51], [58]]
    units = torch.nn.functional.normalize(table.float() - centre, dim=1)
    found = nearest_tokens(table, terms, among, centre, number=5)
    for own, ids in zip(terms, found, strict=True):
        order = (units[own[0]] @ units[among].T).argsort(descending=True)
        assert ids == [index for index in among[order].tolist() if index not in own][:5]


def test_few_or_no_candidates():
    table = torch.eye(4)
    assert nearest_tokens(table, [[3]], torch.tensor([1, 3]), torch.zeros(4)) == [[1]]
    assert nearest_tokens(table, [[3]], torch.tensor([], dtype=torch.int64), torch.zeros(4)) == [[]]
    assert nearest_tokens(table, [], torch.arange(4), torch.zeros(4)) == []
