"""Expected metrics against enumeration: of all labels, and of all orders of ties."""

from itertools import pairwise, permutations, product
from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_edu.ceilings import expected_choice, expected_ndcg, expected_within_auc

SEEDS = st.integers(0, 2**16)


def orders(score):
    """Every order of the rows, best first, that the scores allow."""
    rows = range(len(score))
    return [
        order
        for order in permutations(rows)
        if all(score[a] >= score[b] for a, b in pairwise(order))
    ]


def discount(place, k):
    return 1 / log2(place + 2) if place < k else 0.0


def ndcg(label, order, k):
    found = sum(label[row] * discount(place, k) for place, row in enumerate(order))
    return found / sum(discount(place, k) for place in range(sum(label)))


def requests(seed):
    """Three requests of 2 to 4 rows in mixed order, with ties and certain labels."""
    rng = np.random.default_rng(seed)
    request = rng.permutation(np.repeat([3, 7, 9], rng.integers(2, 5, size=3)))
    score = rng.integers(3, size=len(request)).astype(float)
    return request, score, rng.choice([0.0, 0.2, 0.5, 0.9, 1.0], size=len(request))


@settings(max_examples=30)
@given(seed=SEEDS, k=st.integers(1, 5))
def test_ndcg_is_the_mean_over_all_labels_and_orders(seed, k):
    request, score, p = requests(seed)
    total = judged = 0.0
    for number in np.unique(request):
        s, q = score[request == number], p[request == number]
        ways = orders(s)
        for label in product([0, 1], repeat=len(s)):
            if 0 < sum(label) < len(s):
                chance = np.prod(np.where(label, q, 1 - q))
                judged += chance
                worth = np.mean([ndcg(label, order, k) for order in ways])
                total += chance * worth
    if judged > 0:
        assert abs(expected_ndcg(score, p, request, k=k) - total / judged) < 1e-12


@settings(max_examples=30)
@given(seed=SEEDS, k=st.integers(1, 5))
def test_of_one_taken_row_all_metrics_are_means_over_orders(seed, k):
    request, score, p = requests(seed)
    p = p + 0.1
    p /= np.bincount(request, p)[request]
    totals = []
    for number in np.unique(request):
        s, q = score[request == number], p[request == number]
        places = np.array([np.argsort(order) for order in orders(s)])  # [orders, M]
        m = len(s)
        each = [
            1 - places / (m - 1),
            np.vectorize(discount)(places, k),
            1 / (1 + places),
            places < k,
        ]
        totals.append([*(values.mean(0) @ q for values in each), m - 1])
    auc, ndcg_, mrr, hit, pairs = np.array(totals).T
    within = expected_choice(score, p, request, k=k)
    found = (within.auc, within.auc_pairs, within.ndcg, within.mrr, within.hit)
    means = [auc.mean(), auc @ pairs / pairs.sum()]
    means += [x.mean() for x in (ndcg_, mrr, hit)]
    np.testing.assert_allclose(found, means, atol=1e-12)


def test_no_order_has_a_higher_expectation_than_that_of_p():
    rng = np.random.default_rng(0)
    request, p = np.repeat(np.arange(50), 6), rng.random(300)
    for worth in (expected_ndcg, expected_within_auc):
        best = worth(p, p, request)
        for _ in range(20):
            assert worth(p + rng.normal(scale=0.1, size=300), p, request) < best


def test_requests_that_nobody_judges_are_refused():
    with pytest.raises(ValueError, match="no request with a click and a non-click"):
        expected_ndcg([1.0, 2.0, 3.0], [1.0, 1.0, 0.5], [0, 0, 1])
