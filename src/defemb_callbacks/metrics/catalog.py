"""The metrics in words, for people who have not read the papers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from defemb_callbacks.vocabulary.frequency import GROUPS

OUTPUT = "output_"  # what the names of the metrics of an output table begin with


@dataclass(frozen=True)
class Meaning:
    """What a metric says, in words.

    Attributes:
        title: what it is called in text.
        scale: what its ends mean, in a few words for a picture.
        text: what it says, in a sentence or two for people new to it.
        better: which way is better, or None where neither is.
        form: how its values are written.
    """

    title: str
    scale: str
    text: str
    better: Literal["higher", "nearer to 0"] | None = None
    form: str = "{:.3f}"

    @property
    def direction(self) -> str:
        """Which way is better, as a phrase with its arrow."""
        arrows = {"higher": "↑", "nearer to 0": "→ 0:"}
        return f"{arrows[self.better]} {self.better} is better" if self.better else "no direction is better by itself"

    def write(self, value: float) -> str:
        """A value as it is shown.

        Example:
            >>> MEANINGS["isotropy"].write(0.87321), MEANINGS["drift"].write(0.00004)
            ('0.873', '0.00004')
        """
        text = self.form.format(value) if value else "0"
        # What is not zero must not look so.
        return f"{value:.1e}" if value and float(text.replace(",", "")) == 0 else text

    def verdict(self, before: float, after: float) -> str:
        """`"better"`, `"worse"`, `"higher"`, `"lower"`, or `"same"` where both are written alike.

        Example:
            >>> MEANINGS["average_cosine"].verdict(-0.3, 0.1), MEANINGS["norm"].verdict(1.0, 1.2)
            ('better', 'higher')
        """
        if self.better == "nearer to 0":
            before, after = -abs(before), -abs(after)
        if self.write(before) == self.write(after):
            return "same"
        if self.better is None:
            return "higher" if after > before else "lower"
        return "better" if after > before else "worse"


MEANINGS = {
    "isotropy": Meaning(
        "Isotropy I(E)",
        "1 = the same in all directions",
        "Whether the vectors point evenly in all directions. Near 1 they do; near 0 most of them crowd into a few "
        "directions, so that even unrelated tokens look alike.",
        "higher",
    ),
    "isoscore": Meaning(
        "IsoScore",
        "1 = spread evenly over all directions",
        "How evenly the differences between vectors are spread over the directions of their space. 1: over all alike; "
        "0: all differences lie in one direction.",
        "higher",
    ),
    "average_cosine": Meaning(
        "Average cosine",
        "0 = no common direction",
        "How similar two tokens are on average, as the cosine of their vectors. 0: tokens share no common direction; "
        "1: all point the same way.",
        "nearer to 0",
    ),
    "effective_rank": Meaning(
        "Effective rank",
        "number of directions in use",
        "How many directions the vectors use, weak ones counted in part. At most the width of the table.",
        "higher",
        "{:,.0f}",
    ),
    "norm": Meaning(
        "Length",
        "mean length of a vector",
        "The mean length of a vector. Where it differs much between the groups, vectors tell how frequent a token is "
        "besides what it means.",
        form="{:.2f}",
    ),
    "relation_auc": Meaning(
        "Relation AUC",
        "0.5 = no meaning, 1 = perfect",
        "How often two words that the dictionary relates (a thing and its kind, opposites, …) are more similar than "
        "two words paired at random. 0.5: no better than chance; 1: always.",
        "higher",
    ),
    "rating_correlation": Meaning(
        "Agreement with people",
        "1 = the same order as people's ratings",
        "Whether words that people rate as similar have similar vectors: the rank correlation (Spearman) of the two. "
        "1: the same order; 0: no relation.",
        "higher",
    ),
    "drift": Meaning(
        "Drift",
        "0 = unmoved since train start",
        "How far the vectors have turned since train start: 1 − cosine to the same token's vector then. 0: not at all.",
        form="{:.5f}",
    ),
    "neighbour_overlap": Meaning(
        "Neighbours kept",
        "share of the 10 nearest at train start",
        "How many of a token's 10 nearest tokens at train start are still among its 10 nearest. 1: all; 0: none.",
    ),
}


def meaning_of(metric: str) -> Meaning:
    """The meaning of a metric, of the input table or of the output table; of an unknown one just its name."""
    name = metric.removeprefix(OUTPUT)
    return MEANINGS.get(name) or Meaning(name.replace("_", " ").capitalize(), "", "")


def metrics_in(rows: Iterable[Mapping[str, Any]], prefix: str = "") -> list[str]:
    """The metrics that stand in some row under `defemb/<metric>/<group>`, known ones first, of one table.

    Args:
        rows: of a log, or dictionaries of metrics.
        prefix: `""` for the input table, `OUTPUT` for the output table.

    Example:
        >>> metrics_in([{"defemb/drift/all": 0.0, "defemb/output_norm/all": 1.0}, {"defemb/isotropy/rare": 0.5}])
        ['isotropy', 'drift']
    """
    keys = (key.split("/") for row in rows for key in row if key.startswith("defemb/"))
    metrics = dict.fromkeys(key[1] for key in keys if len(key) == 3 and key[2] in ("all", *GROUPS))
    found = [name for name in metrics if name.startswith(OUTPUT) == bool(prefix)]
    order = [prefix + name for name in MEANINGS]
    return [name for name in order if name in found] + [name for name in found if name not in order]
