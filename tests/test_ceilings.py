"""Expected NDCG against enumeration: of all labels, and of all orders of ties."""

from itertools import pairwise, permutations, product
from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_edu.ceilings import expected_ndcg
from recsys_edu.ranking import by_request

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


def test_no_order_has_a_higher_expectation_than_that_of_p():
    rng = np.random.default_rng(0)
    request, p = np.repeat(np.arange(50), 6), rng.random(300)
    best = expected_ndcg(p, p, request)
    for _ in range(20):
        assert expected_ndcg(p + rng.normal(scale=0.1, size=300), p, request) < best


def test_it_is_what_drawn_labels_give_on_average():
    """Judged as ``by_request`` judges, which skips requests of one label."""
    rng = np.random.default_rng(0)
    request, p = np.repeat(np.arange(4_000), 12), rng.random(48_000) ** 2
    score = np.round(p + rng.normal(scale=0.2, size=len(p)), 1)  # with ties
    label = (rng.random(len(p)) < p).astype(float)
    found = by_request(label, score, request)
    error = found.ndcg.std() / np.sqrt(len(found.ndcg))
    assert abs(found.ndcg.mean() - expected_ndcg(score, p, request)) < 5 * error < 0.02


def test_requests_that_nobody_judges_are_refused():
    with pytest.raises(ValueError, match="no request with a click and a non-click"):
        expected_ndcg([1.0, 2.0, 3.0], [1.0, 1.0, 0.5], [0, 0, 1])
