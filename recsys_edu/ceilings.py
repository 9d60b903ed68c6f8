"""What a ranking of requests is worth when the chances behind their labels are known.

A planted world knows p. The metrics below are then expectations over the labels, so
that two rankings differ by what they are and not by how the labels fell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

K = 10
"""Places from the top that NDCG and hit rate look at."""


@dataclass(frozen=True)
class Within:
    """STUB until METRICS lands: means over requests."""

    auc: float
    auc_pairs: float
    ndcg: float
    mrr: float
    hit: float
    requests: int
    skipped: int


def expected_within_auc(score: ArrayLike, p: ArrayLike, request: ArrayLike) -> float:
    """STUB until METRICS lands: pair-weighted, labels independent Bernoulli(p)."""
    score, p, real = _side_by_side(request, score, p)
    pairs = p[:, :, None] * (1 - p)[:, None, :]
    pairs *= (real[:, :, None] & real[:, None, :]) & ~np.eye(p.shape[1], dtype=bool)
    difference = (
        np.where(real, score, 0)[:, :, None] - np.where(real, score, 0)[:, None]
    )
    right = (difference > 0) + (difference == 0) / 2
    return float((pairs * right).sum() / pairs.sum())


def expected_choice(
    score: ArrayLike, p: ArrayLike, request: ArrayLike, *, k: int = K
) -> Within:
    """STUB until METRICS lands: exactly one row of a request is taken, with p."""
    score, p, real = _side_by_side(request, score, p)
    m = score.shape[1]
    size = real.sum(1, keepdims=True)
    place = np.arange(m)
    auc = 1 - _over_places(score, place) / np.maximum(size - 1, 1)
    judged = size[:, 0] > 1

    def mean(values: np.ndarray) -> float:
        return float((values * p).sum(1)[judged].mean())

    weight = (size[judged, 0] - 1) / (size[judged, 0] - 1).sum()
    return Within(
        mean(auc),
        float(weight @ (auc * p).sum(1)[judged]),
        mean(_over_places(score, _discount(m, k))),
        mean(_over_places(score, 1 / (1 + place))),
        mean(_over_places(score, (place < k).astype(float))),
        int(judged.sum()),
        int((~judged).sum()),
    )


def expected_ndcg(
    score: ArrayLike, p: ArrayLike, request: ArrayLike, *, k: int = K
) -> float:
    """NDCG@k of ranking requests by `score` [E], labels independent Bernoulli(p).

    A request of M rows is judged if it has both labels, as in ``by_request``. With D_i
    the discount of row i's place, and C the clicks of the M - 1 other rows::

        E[NDCG; judged] = sum_i p_i D_i E[1 / ideal(1 + C); 1 + C < M]
        ideal(c)        = sum of the first min(c, k) discounts

    and the mean over judged requests is the sum of that over all requests, over the
    expected number of judged ones. Exact, ties as the mean over their orders; C has the
    Poisson binomial distribution, by M steps for each row: O(M^3) time a request.

    Raises:
        ValueError: p leaves no request with both labels.
    """
    total, judged = 0.0, 0.0
    score, p, real = _side_by_side(request, score, p)
    m = score.shape[1]
    discount = _discount(m, k)
    worth = 1 / np.cumsum(discount)  # 1 / ideal(c) of c = 1 .. M
    others = ~np.eye(m, dtype=bool)
    for first in range(0, len(p), max(1, 4_000_000 // m**2)):
        part = slice(first, first + max(1, 4_000_000 // m**2))
        chance, size = p[part], real[part].sum(1)
        clicks = np.zeros((*chance.shape, m))  # [R, M, C]: P(C others are clicked)
        clicks[..., 0] = 1
        for other in range(m):
            q = (chance[:, other, None] * others[other])[..., None]
            clicks[..., 1:] = clicks[..., 1:] * (1 - q) + clicks[..., :-1] * q
            clicks[..., 0] *= 1 - q[..., 0]
        some = np.arange(1, m + 1) < size[:, None, None]  # [R, 1, C]: 1 + C < M
        ideal = (clicks * some) @ worth
        total += (chance * _over_places(score[part], discount) * ideal).sum()
        none = np.where(real[part], 1 - chance, 1).prod(1)
        every = np.where(real[part], chance, 1).prod(1)
        judged += (1 - none - every)[size > 1].sum()
    if judged <= 0:
        raise ValueError("p leaves no request with a click and a non-click to rank")
    return float(total / judged)


def _discount(m: int, k: int) -> np.ndarray:
    """1 / log2(1 + place) of places 1 .. m, 0 behind the k-th."""
    place = np.arange(1, m + 1)
    return np.where(place <= k, 1 / np.log2(1 + place), 0.0)


def _over_places(score: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """Mean of ``worth`` [M] over the places that each row may take, [R, M].

    Rows of equal score stand in any order alike.
    """
    first = rankdata(-score, method="min", axis=1).astype(int) - 1
    end = rankdata(-score, method="max", axis=1).astype(int)
    until = np.append(0, np.cumsum(worth))
    return (until[end] - until[first]) / (end - first)


def _side_by_side(
    request: ArrayLike, score: ArrayLike, p: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores and p of requests as rows [R, M], and which of them are real.

    Padding scores below all others and has p = 0.
    """
    request = np.asarray(request)
    order = np.argsort(request, kind="stable")
    _, number, size = np.unique(request[order], return_inverse=True, return_counts=True)
    column = np.arange(len(order)) - (np.cumsum(size) - size)[number]
    wide = np.full((2, len(size), size.max()), -np.inf)
    wide[1] = 0
    wide[:, number, column] = np.stack([score, p])[:, order]
    return wide[0], wide[1], np.arange(size.max()) < size[:, None]
