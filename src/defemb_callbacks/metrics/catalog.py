"""The catalog of metrics: the name, title, meaning, direction and format of each, for every report, page and card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from defemb_callbacks.vocabulary.frequency import GROUPS

# Prefix of the names of metrics that are measured on an output table.
OUTPUT = "output_"


@dataclass(frozen=True)
class Metric:
    """What reports, pages and cards show about a metric.

    Attributes:
        name: Name in log keys, `defemb/<name>/<group>`.
        title: Title in text and above plots.
        definition: Definition in one line, for readers who know the field.
        meaning: Explanation in a sentence or two, for readers who do not.
        scale: What one end of the scale means, in a few words for the title of a plot.
        better: Which values are better, or `None` if no direction is better by itself.
        format: Format string of its values.
        column: Heading of its column in the table of a rebuild report; `None` leaves it out of that table.
        in_summary: Whether it is in the summary at the top of the page.
        headline: Whether it is shown in the progress bar and logged with evaluations.
    """

    name: str
    title: str
    definition: str = ""
    meaning: str = ""
    scale: str = ""
    better: Literal["higher", "closer to 0"] | None = None
    format: str = "{:.3f}"
    column: str | None = None
    in_summary: bool = False
    headline: bool = False

    @property
    def direction(self) -> str:
        """Which values are better, as a phrase with an arrow."""
        arrows = {"higher": "↑", "closer to 0": "→ 0:"}
        return f"{arrows[self.better]} {self.better} is better" if self.better else "neither direction is better"

    def format_value(self, value: float) -> str:
        """Format a value for display; nonzero values are never rounded to 0.

        Example:
            >>> CATALOG["isotropy"].format_value(0.87321), CATALOG["drift"].format_value(0.000004)
            ('0.873', '4.0e-06')
        """
        text = self.format.format(value) if value else "0"
        return f"{value:.1e}" if value and float(text.replace(",", "")) == 0 else text

    def compare(self, before: float, after: float) -> str:
        """Compare two values: `"better"`, `"worse"`, `"higher"`, `"lower"`, or `"same"` if both are displayed alike.

        Example:
            >>> CATALOG["average_cosine"].compare(-0.3, 0.1), CATALOG["norm"].compare(1.0, 1.2)
            ('better', 'higher')
        """
        if self.better == "closer to 0":
            before, after = -abs(before), -abs(after)
        if self.format_value(before) == self.format_value(after):
            return "same"
        if self.better is None:
            return "higher" if after > before else "lower"
        return "better" if after > before else "worse"


_METRICS = (
    Metric(
        name="isotropy",
        title="Isotropy I(E)",
        definition="min Z(c) / max Z(c) for Z(c) = Σ exp(c·e) over the rows e, where c are the eigenvectors of EᵀE "
        "with both signs; 1 = the same in all directions",
        meaning="Whether the vectors point evenly in all directions. Near 1 they do. Near 0 most of them cluster in a "
        "few directions, so that even unrelated tokens look alike.",
        scale="1 = the same in all directions",
        better="higher",
        column="isotropy",
        in_summary=True,
        headline=True,
    ),
    Metric(
        name="isoscore",
        title="IsoScore",
        definition="how evenly the variance is spread over all dimensions, from 0 to 1 (Rudman et al. 2022)",
        meaning="How evenly the differences between vectors are spread over the dimensions of their space. 1: over all "
        "dimensions equally. 0: all differences lie in one direction.",
        scale="1 = spread evenly over all directions",
        better="higher",
    ),
    Metric(
        name="average_cosine",
        title="Average cosine",
        definition="mean cosine of two different rows; 0 = no common direction",
        meaning="How similar two tokens are on average, as the cosine of their vectors. 0: the tokens share no common "
        "direction. 1: all of them point the same way.",
        scale="0 = no common direction",
        better="closer to 0",
        column="avg cosine",
    ),
    Metric(
        name="effective_rank",
        title="Effective rank",
        definition="exponential of the entropy of the singular values; at most the width of the table",
        meaning="How many directions the vectors use, where weak directions count in part. At most the width of the "
        "table.",
        scale="number of directions in use",
        better="higher",
        format="{:,.0f}",
        column="eff. rank",
    ),
    Metric(
        name="norm",
        title="Norm",
        definition="mean Euclidean norm of a row; I(E) rises when rows get shorter",
        meaning="The mean length of a vector. If it differs much between the groups, the vectors encode the frequency "
        "of a token as well as its meaning.",
        scale="mean length of a vector",
        format="{:.2f}",
        column="norm",
    ),
    Metric(
        name="relation_auc",
        title="Relation AUC",
        definition="probability that two words related in the dictionary have a larger cosine than two re-paired "
        "words; 0.5 = chance",
        meaning="How often two words that the dictionary relates (such as a thing and its kind, or opposites) are more "
        "similar than two words paired at random. 0.5: no better than chance. 1: always.",
        scale="0.5 = no meaning, 1 = perfect",
        better="higher",
        column="relation AUC",
        in_summary=True,
        headline=True,
    ),
    Metric(
        name="rating_correlation",
        title="Correlation with human ratings",
        definition="Spearman correlation of cosines with human similarity ratings of word pairs; requires `ratings=`",
        meaning="Whether words that people rate as similar have similar vectors, as the Spearman rank correlation of "
        "the two. 1: the same order. 0: no relation.",
        scale="1 = the same order as the ratings",
        better="higher",
        in_summary=True,
    ),
    Metric(
        name="drift",
        title="Drift",
        definition="mean of 1 − cosine between a row and the same row at train start (or where the run was resumed)",
        meaning="How far the vectors have turned since train start: 1 − cosine to the same token’s vector at that "
        "time. 0: not at all.",
        scale="0 = unchanged since train start",
        format="{:.5f}",
    ),
    Metric(
        name="neighbour_overlap",
        title="Neighbour overlap",
        definition="share of the 10 nearest neighbours at train start that are still among the 10 nearest",
        meaning="How many of a token’s 10 nearest tokens at train start are still among its 10 nearest. 1: all of "
        "them. 0: none.",
        scale="share of the 10 nearest at train start",
    ),
)

CATALOG = {metric.name: metric for metric in _METRICS}

# Log keys of the few metrics that are shown where all of them would be too many numbers.
HEADLINES = tuple(
    f"defemb/{metric.name}/{group}" for metric in _METRICS if metric.headline for group in ("all", "rare")
)


def metric_of(name: str) -> Metric:
    """Look up a metric by its name in log keys, with or without the prefix of the output table.

    A name that is not in the catalog gets a title made from the name and no explanation.

    Example:
        >>> metric_of("output_norm").title, metric_of("my_metric").title
        ('Norm', 'My metric')
    """
    name = name.removeprefix(OUTPUT)
    return CATALOG.get(name) or Metric(name, name.replace("_", " ").capitalize())


def metrics_in(rows: Iterable[Mapping[str, Any]], prefix: str = "") -> list[str]:
    """List the metrics of one table that occur in rows under keys `defemb/<metric>/<group>`.

    Args:
        rows: Rows of a log, or dictionaries of metrics.
        prefix: `""` for the input table, `OUTPUT` for the output table.

    Returns:
        The names of the metrics: first those of the catalog, in its order, then all others.

    Example:
        >>> metrics_in([{"defemb/drift/all": 0.0, "defemb/output_norm/all": 1.0}, {"defemb/isotropy/rare": 0.5}])
        ['isotropy', 'drift']
    """
    keys = (key.split("/") for row in rows for key in row if key.startswith("defemb/"))
    metrics = dict.fromkeys(key[1] for key in keys if len(key) == 3 and key[2] in ("all", *GROUPS))
    found = [name for name in metrics if name.startswith(OUTPUT) == bool(prefix)]
    order = [prefix + name for name in CATALOG]
    return [name for name in order if name in found] + [name for name in found if name not in order]
