"""Groups of rows: validation, sampling, and disjoint parts, so that sums over all rows are sums over groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Parts(NamedTuple):
    """Groups as unions of disjoint sets of rows.

    If the other groups are disjoint subsets of `"all"`, the parts are these groups and, as part `"all"`, the rows in
    none of them. Otherwise each group is a part.

    Attributes:
        ids: Row ids of each part, int64, ascending; no part is empty.
        of: Names of the parts of each group; empty for a group without rows.
    """

    ids: dict[str, Tensor]
    of: dict[str, list[str]]

    @classmethod
    def of_groups(cls, groups: Mapping[str, Tensor]) -> Parts:
        """Split groups from `checked_groups` into parts.

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
    """Validate groups and move them to the CPU.

    Raises:
        TypeError: If the ids of a group are not a one-dimensional int64 tensor.
        ValueError: If there is no group `"all"`, or a group has negative or duplicate ids.
    """
    if "all" not in groups:
        raise ValueError(f'groups must contain "all", the ids of all tokens to measure, got {sorted(groups)}.')
    for name, ids in groups.items():
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.ndim != 1:
            raise TypeError(f"group {name!r} must be a one-dimensional int64 tensor of row ids, got {ids!r}.")
        if (ids < 0).any():
            raise ValueError(
                f"group {name!r} must hold row ids of 0 or more, got {int(ids.min())}. Leave out negative ids."
            )
        if len(ids.unique()) < len(ids):
            raise ValueError(f"group {name!r} names a row twice. Pass ids.unique().")
    return {name: ids.cpu() for name, ids in groups.items()}


def check_inside(groups: Mapping[str, Tensor], table: Tensor, name: str = "table") -> None:
    """Check that a table has a row for every id.

    Raises:
        ValueError: If an id is out of range; the message calls the table `name`.
    """
    for group, ids in groups.items():
        if len(ids) and int(ids.max()) >= len(table):
            raise ValueError(
                f"group {group!r} names row {int(ids.max())}, the {name} has rows 0 to {len(table) - 1}. "
                "Pass ids of its rows."
            )


def evenly(ids: Tensor, size: int | None) -> Tensor:
    """Return at most `size` of the ids, evenly spaced, including the first and the last.

    Example:
        >>> evenly(torch.arange(10, 20), 4).tolist()
        [10, 13, 16, 19]
    """
    if size is None or len(ids) <= size:
        return ids
    return ids[torch.linspace(0, len(ids) - 1, size, dtype=torch.float64).round().long()]
