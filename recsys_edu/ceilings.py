"""NDCG within requests when labels are independent draws of known chances.

The other expectations, ``expected_within_auc`` and ``expected_choice``, add up over
pairs and rows. NDCG does not: it divides by what the best order of *these* labels would
get, so that the number of clicks has a say in every request.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from torch import Tensor

from recsys_edu.metrics import (
    as_float64,
    require,
    require_probabilities,
    require_same_rows,
)

CHUNK = 1 << 22
"""Numbers in the largest array: requests are taken some at a time."""


def expected_ndcg(
    score: ArrayLike | Tensor,
    p: ArrayLike | Tensor,
    request: ArrayLike,
    *,
    k: int = 10,
) -> float:
    """NDCG@k of ranking by `score` [E] when labels are drawn as Bernoulli(p), p [E].

    A request of M rows is judged if it has both labels, as in ``by_request``. With D_i
    the discount of row i's place, and C the clicks among the other M - 1 rows::

        E[NDCG; judged] = sum_i p_i D_i E[1 / ideal(1 + C); 1 + C < M]
        ideal(c)        = sum of the first min(c, k) discounts

    What is returned is the sum of that over requests, over the expected number of
    judged ones. Exact: of tied rows D_i is the mean over their orders, and C has the
    Poisson binomial distribution, M steps for each row. O(M^3) time a request.
    Ranking by p itself gives the ceiling.

    Raises:
        ValueError: p leaves no request with a click and a non-click.
    """
    score, p = as_float64(score), as_float64(p)
    require_same_rows("score", score, "p", p)
    require("score", score, ~np.isnan(score), "numbers")
    require_probabilities("p", p)
    score, p, real = _side_by_side(score, p, np.asarray(request))
    m = score.shape[1]
    discount = np.where(np.arange(m) < k, 1 / np.log2(np.arange(m) + 2), 0)
    worth = 1 / np.cumsum(discount)  # 1 / ideal(c) of c = 1 .. M
    others = ~np.eye(m, dtype=bool)
    total = judged = 0.0
    step = max(1, CHUNK // m**2)
    for first in range(0, len(p), step):
        part = slice(first, first + step)
        chance, size = p[part], real[part].sum(1)
        clicks = np.zeros((*chance.shape, m))  # [R, M, C]: P(C of the others)
        clicks[..., 0] = 1
        for other in range(m):
            q = (chance[:, other, None] * others[other])[..., None]
            clicks[..., 1:] = clicks[..., 1:] * (1 - q) + clicks[..., :-1] * q
            clicks[..., 0] *= 1 - q[..., 0]
        both = np.arange(1, m + 1) < size[:, None, None]  # [R, 1, C]: 1 + C < M
        gain = _over_places(score[part], discount)
        total += (chance * gain * ((clicks * both) @ worth)).sum()
        none = (1 - chance).prod(1)
        every = np.where(real[part], chance, 1).prod(1)
        judged += (1 - none - every)[size > 1].sum()
    if judged <= 0:
        raise ValueError("p leaves no request with a click and a non-click to rank")
    return float(total / judged)


def _over_places(score: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """Mean of ``worth`` [M] over the places that each row may take, [R, M].

    Rows of equal score stand in any order alike.
    """
    begin = rankdata(-score, method="min", axis=1).astype(int) - 1
    end = rankdata(-score, method="max", axis=1).astype(int)
    until = np.append(0, np.cumsum(worth))
    return (until[end] - until[begin]) / (end - begin)


def _side_by_side(
    score: np.ndarray, p: np.ndarray, request: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Requests as rows [R, M]: order of the scores, p, and what is no padding.

    Padding stands below all others and is never clicked.
    """
    order = np.argsort(request, kind="stable")
    _, number, size = np.unique(request[order], return_inverse=True, return_counts=True)
    column = np.arange(len(order)) - (np.cumsum(size) - size)[number]
    shape = len(size), size.max(initial=1)
    ranks, chance = np.full(shape, -1), np.zeros(shape)
    ranks[number, column] = np.unique(score, return_inverse=True)[1][order]
    chance[number, column] = p[order]
    return ranks, chance, np.arange(shape[1]) < size[:, None]
