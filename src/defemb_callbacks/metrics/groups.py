"""Groups of rows: checked, sampled, and cut into disjoint parts, so that a sum over all rows is one over the groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Parts(NamedTuple):
    """Groups as unions of disjoint sets of rows.

    Where the other groups are disjoint parts of ``"all"``, the parts are they and, as part ``"all"``, the rows in none
    of them; otherwise each group is a part.

    Attributes:
        ids: int64 row ids by part, in growing order; no part is empty.
        of: the parts that each group consists of; none for a group without rows.
    """

    ids: dict[str, Tensor]
    of: dict[str, list[str]]

    @classmethod
    def of_groups(cls, groups: Mapping[str, Tensor]) -> Parts:
        """From `checked_groups`.

        Example:
            >>> parts = Parts.of_groups({"all": torch.arange(5), "rare": torch.tensor([4, 3])})
            >>> {name: ids.tolist() for name, ids in parts.ids.items()}, parts.of
            ({'all': [0, 1, 2], 'rare': [3, 4]}, {'all': ['all', 'rare'], 'rare': ['rare']})
        """
        ids = {name: members.sort().values for name, members in groups.items()}
        named = torch.cat([members for name, members in ids.items() if name != "all"] or [ids["all"][:0]])
        disjoint = len(named.unique()) == len(named) and bool(torch.isin(named, ids["all"]).all())
        if disjoint:
            ids["all"] = ids["all"][~torch.isin(ids["all"], named)]
        ids = {name: members for name, members in ids.items() if len(members)}
        of = {name: [name] if name in ids else [] for name in groups}
        return cls(ids, of | {"all": [*ids]} if disjoint else of)


def checked_groups(groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The groups on the CPU, or an error that says what is wrong with them.

    Raises:
        TypeError: ids that are no one-dimensional int64 tensor.
        ValueError: no group ``"all"``, negative ids, or an id twice in a group.
    """
    if "all" not in groups:
        raise ValueError(f'groups must contain "all", the ids of every token that counts, got {sorted(groups)}')
    for name, ids in groups.items():
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.ndim != 1:
            raise TypeError(f"group {name!r} must be a one-dimensional int64 tensor of row ids, got {ids!r}")
        if (ids < 0).any():
            raise ValueError(f"group {name!r} must hold row ids of 0 or more, got {int(ids.min())}")
        if len(ids.unique()) < len(ids):
            raise ValueError(f"group {name!r} names a row twice; use ids.unique()")
    return {name: ids.cpu() for name, ids in groups.items()}


def check_inside(groups: Mapping[str, Tensor], table: Tensor, name: str = "table") -> None:
    """Refuse ids that the table, which errors call ``name``, has no row for: `ValueError`."""
    for group, ids in groups.items():
        if len(ids) and int(ids.max()) >= len(table):
            raise ValueError(f"group {group!r} names row {int(ids.max())}, the {name} has rows 0 to {len(table) - 1}")


def evenly(ids: Tensor, size: int | None) -> Tensor:
    """At most ``size`` of the ids, evenly spaced, the first and the last among them.

    Example:
        >>> evenly(torch.arange(10, 20), 4).tolist()
        [10, 13, 16, 19]
    """
    if size is None or len(ids) <= size:
        return ids
    return ids[torch.linspace(0, len(ids) - 1, size, dtype=torch.float64).round().long()]
