"""From scores to a ranking: order, threshold, and scores between 0 and 1."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .checks import check_whole_number
from .errors import InputError

if TYPE_CHECKING:
    from .checkpoint import ColBERTSpec
    from .explain import Explanation

__all__ = ["RankedDocument", "check_normalizable", "check_top_n", "normalized_score", "ranked"]


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """A document's place in a ranking.

    Attributes:
        index: Position in the list that was ranked.
        score: Higher is better; comparable within one query only.
        explanation: How the score came about, where that was asked for.
    """

    index: int
    score: float
    explanation: Explanation | None = field(default=None, repr=False)


def ranked(
    sums: list[float], top_n: int | None, threshold: float | None = None, *, query_vectors: int | None = None
) -> list[RankedDocument]:
    """The best documents first; those of equal sums in the order in which they came.

    Args:
        sums: The MaxSim of each document.
        top_n: Maximum number to keep. None: all.
        threshold: The least score to keep. None: any.
        query_vectors: How many vectors the query has, to normalise scores by. None: scores are the sums.

    Returns:
        What is kept. Normalised scores are cut off at 0, which does not change the order.
    """
    scores = sums if query_vectors is None else [normalized_score(total, query_vectors) for total in sums]
    order = sorted(range(len(sums)), key=lambda index: -sums[index])
    kept = [index for index in order if threshold is None or scores[index] >= threshold]
    return [RankedDocument(index, scores[index]) for index in kept[:top_n]]


def check_top_n(top_n: object) -> None:
    """Refuse anything but a whole number from 1, or None for all."""
    if top_n is not None:
        check_whole_number("top_n", top_n, otherwise=", or None for all")


def normalized_score(score: float, query_vectors: int) -> float:
    """The mean over a query's vectors, ``score / query_vectors``, between 0 and 1 for vectors of unit length."""
    # Rounding can carry the mean of cosines past 1, and it can be negative.
    return min(1.0, max(0.0, score / max(1, query_vectors)))


def check_normalizable(spec: ColBERTSpec) -> None:
    """Refuse a mean of similarities that have no bounds."""
    if not spec.normalize:
        raise InputError(
            f"{spec.name} does not normalise its vectors, so its scores have no bounds: pass normalize_scores=False"
        )
