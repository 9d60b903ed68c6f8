"""Metrics within requests against all orders of the tied rows, and against draws."""

import math
from itertools import groupby, permutations, product

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, roc_auc_score

from recsys_edu import ranking
from recsys_edu.metrics import expected_auc
from recsys_edu.ranking import (
    ByRequest,
    bootstrap,
    by_request,
    expected_choice,
    expected_within_auc,
    paired_bootstrap,
)

METRICS = ("auc", "ndcg", "mrr", "hit")
# A sum of a few dozen numbers below 1, over one of its like; gammaln adds its own.
EXACT = dict(rel=1e-12, abs=1e-12)


def orders(rows):
    """All orders of (score, label) rows, best first, that break ties in one way."""
    rows = sorted(rows, key=lambda row: -row[0])
    tied = [list(group) for _, group in groupby(rows, key=lambda row: row[0])]
    for parts in product(*map(permutations, tied)):
        yield [label for part in parts for _, label in part]


def worth(order, k):
    """AUC, NDCG@k, reciprocal rank and hit@k of labels, best first, without ties."""
    clicked = [place for place, label in enumerate(order, 1) if label]
    skipped = [place for place, label in enumerate(order, 1) if not label]
    gain = sum(1 / math.log2(1 + place) for place in clicked if place <= k)
    best = sum(1 / math.log2(1 + place) for place in range(1, min(k, len(clicked)) + 1))
    right = sum(one < other for one in clicked for other in skipped)
    return (
        right / (len(clicked) * len(skipped)),
        gain / best,
        1 / clicked[0],
        float(clicked[0] <= k),
    )


def mean_worth(rows, k):
    """The mean of :func:`worth` over all orders of the tied rows."""
    return np.mean([worth(order, k) for order in orders(rows)], axis=0)


# (request, score, label): few of each, so that requests are interleaved, ragged, and
# full of ties and of clicks; two scores are no finite numbers.
ROWS = st.lists(
    st.tuples(
        st.sampled_from([3, 40, 41]),
        st.sampled_from([-math.inf, -1.0, 0.0, 2.5, math.inf]),
        st.booleans(),
    ),
    min_size=1,
    max_size=13,
)


def columns(rows):
    request, score, label = zip(*rows, strict=True)
    return np.array(label, float), np.array(score), np.array(request)


@settings(max_examples=200)
@given(ROWS, st.integers(1, 8))
def test_every_metric_is_its_mean_over_all_orders_of_the_tied_rows(rows, k):
    by_number = {}
    for request, score, label in rows:
        by_number.setdefault(request, []).append((score, label))
    assume(all(len(some) <= 7 for some in by_number.values()))
    both = {
        number: some
        for number, some in sorted(by_number.items())
        if {label for _, label in some} == {True, False}
    }
    if not both:
        with pytest.raises(ValueError, match=f"none of {len(by_number)} requests has"):
            by_request(*columns(rows), k=k)
        return
    found = by_request(*columns(rows), k=k)
    assert found.request.tolist() == list(both)
    assert found.skipped == len(by_number) - len(both)
    expected = np.array([mean_worth(some, k) for some in both.values()])
    for name, values in zip(METRICS, expected.T, strict=True):
        assert getattr(found, name) == pytest.approx(values, **EXACT), name
    clicks = np.array([sum(label for _, label in some) for some in both.values()])
    rows_of = np.array([len(some) for some in both.values()])
    assert found.pairs.tolist() == (clicks * (rows_of - clicks)).tolist()
    means = found.means()
    assert [getattr(means, name) for name in METRICS] == pytest.approx(expected.mean(0))
    weighted = np.average(expected[:, 0], weights=found.pairs)
    assert means.auc_pairs == pytest.approx(weighted)
    assert (means.requests, means.skipped) == (len(both), found.skipped)


@pytest.mark.parametrize("clicks", [1, 3, 8])
def test_seven_tied_rows_and_more_are_their_mean_too(clicks):
    """Where orders are too many to list: every choice of the clicked places."""
    label = np.zeros(9)
    label[:clicks] = 1
    found = by_request(label, np.zeros(9), np.zeros(9, int), k=4)
    places = set(permutations(label.tolist()))
    expected = np.mean([worth(order, 4) for order in places], axis=0)
    got = [getattr(found, name)[0] for name in METRICS]
    assert got == pytest.approx(expected, **EXACT)


def test_by_hand():
    # Request 7: a miss, two tied of which one is clicked, a miss. Request 9 is perfect.
    label = [0, 1, 0, 0, 1, 0]
    score = [4, 3, 3, 1, 2, 1]
    request = [7, 7, 7, 7, 9, 9]
    found = by_request(label, score, request, k=2)
    assert found.request.tolist() == [7, 9]
    assert found.auc.tolist() == [0.5, 1]  # one of three below, and half of the tied
    assert found.pairs.tolist() == [3, 1]
    assert found.ndcg == pytest.approx([1 / math.log2(3) / 2, 1])  # place 2, or 3 > k
    assert found.mrr == pytest.approx([(1 / 2 + 1 / 3) / 2, 1])
    assert found.hit.tolist() == [0.5, 1]
    means = found.means()
    assert (means.auc, means.auc_pairs) == (0.75, 0.625)
    assert str(means) == (
        "within 2 requests: AUC 0.7500, NDCG 0.6577, MRR 0.7083, hit 0.7500"
    )


@pytest.mark.parametrize("k", [1, 5, 10, 50])
def test_ndcg_and_auc_are_scikit_learn_s(k):
    rng = np.random.default_rng(k)
    label = rng.random((60, 30)) < 0.3
    score = rng.integers(0, 6, (60, 30))
    request = np.repeat(rng.permutation(60) + 5, 30)
    found = by_request(label.ravel(), score.ravel(), request, k=k)
    order = np.argsort(request[::30])
    label, score = label[order].astype(float), score[order]
    pairs = list(zip(label, score, strict=True))
    ndcg = [ndcg_score([one], [other], k=k) for one, other in pairs]
    assert found.ndcg == pytest.approx(ndcg, **EXACT)
    auc = [roc_auc_score(one, other) for one, other in pairs]
    assert found.auc == pytest.approx(auc, **EXACT)


@pytest.mark.parametrize("k", [1, 10, 50])
def test_torchmetrics_agrees_where_it_averages_over_ties_or_there_are_none(k):
    """It breaks ties of the reciprocal rank and of the hit rate by the rows' places."""
    retrieval = pytest.importorskip("torchmetrics.retrieval")
    theirs = {
        "auc": retrieval.RetrievalAUROC(),
        "ndcg": retrieval.RetrievalNormalizedDCG(top_k=k),
        "mrr": retrieval.RetrievalMRR(),
        "hit": retrieval.RetrievalHitRate(top_k=k),
    }
    for scores, names in ((4, ("auc", "ndcg")), (2**20, METRICS)):
        label, score, request = draw(k, scores=scores)
        tied = len(set(zip(score, request, strict=True))) < len(score)
        assert tied == (scores == 4)
        found = by_request(label, score, request, k=k)
        judged = np.isin(request, found.request)
        # Scores above 1 would go through a sigmoid, and be tied there.
        columns = score / scores, label.astype(int), request
        rows = [torch.tensor(column[judged]) for column in columns]
        for name in names:
            value = theirs[name](rows[0], rows[1], indexes=rows[2])
            # It computes in float32, and takes the mean of some 25 requests.
            assert getattr(found.means(), name) == pytest.approx(value.item(), rel=1e-6)


def draw(seed, requests=40, scores=4):
    """(label, score, request) of ragged requests in a random order of rows."""
    rng = np.random.default_rng(seed)
    request = np.repeat(np.arange(requests), rng.integers(1, 12, requests))
    rng.shuffle(request)
    label = (rng.random(len(request)) < 0.3).astype(float)
    return label, rng.integers(0, scores, len(request)).astype(float), request


def equal(one: ByRequest, other: ByRequest):
    return one.skipped == other.skipped and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("request", "pairs", *METRICS)
    )


@given(st.integers(0, 2**16))
def test_only_the_order_within_a_request_matters(seed):
    label, score, request = draw(seed)
    found = by_request(label, score, request)
    rng = np.random.default_rng(seed)
    shift = rng.integers(-3, 4, request.max() + 1)[request]
    assert equal(found, by_request(label, np.exp(score) + shift * 2.0**20, request))
    order = rng.permutation(len(label))
    assert equal(found, by_request(label[order], score[order], request[order]))
    renamed = by_request(label, score, 10**12 + 7 * request)
    assert renamed.request.tolist() == (10**12 + 7 * found.request).tolist()
    assert renamed.mrr.tolist() == found.mrr.tolist()
    turned = by_request(1 - label, -score, request)
    assert turned.auc == pytest.approx(found.auc, **EXACT)


@pytest.mark.parametrize("where", [-math.inf, math.inf])
def test_infinite_scores_are_scores(where):
    """A candidate that is not shown scores -inf: below all, and tied with its like."""
    label, score, request = [1, 0, 0, 0], [where, where, 0.0, 0.0], [0] * 4
    found = by_request(label, score, request)
    assert found.auc.tolist() == [(0.5 + 2 * (where > 0)) / 3]
    assert found.mrr.tolist() == [0.75 if where > 0 else (1 / 3 + 1 / 4) / 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tensors_of_any_type_and_with_a_gradient_are_judged_as_their_numbers(dtype):
    label, score, request = draw(0, scores=100)
    tensor = torch.tensor(score / 100, dtype=dtype, requires_grad=True)
    numbers = tensor.detach().double().numpy()
    found = by_request(torch.tensor(label).bool(), tensor, torch.tensor(request))
    assert equal(found, by_request(label.tolist(), numbers.tolist(), request.tolist()))
    p = torch.rand(len(label), dtype=torch.float64)
    assert expected_within_auc(tensor, p, torch.tensor(request)) == (
        expected_within_auc(numbers, p.numpy(), request)
    )
    two, half = torch.tensor([4, 4]), torch.tensor([0.5, 0.5], requires_grad=True)
    assert expected_choice(half, half, two).auc == 0.5


def test_k_may_exceed_every_request():
    label, score, request = draw(3)
    found = by_request(label, score, request, k=10**15)
    assert equal(found, by_request(label, score, request, k=12))
    assert (found.hit == 1).all()


def test_a_request_alone_is_judged_as_among_others():
    """Sums run through all rows: none may leak from one request into the next."""
    label, score, request = draw(5)
    found = by_request(label, score, request)
    assert found.skipped > 0
    for i, number in enumerate(found.request):
        own = request == number
        alone = by_request(label[own], score[own], request[own])
        for name in METRICS:
            assert getattr(alone, name)[0] == pytest.approx(getattr(found, name)[i])


def test_a_request_of_thousands_of_tied_rows():
    """Of c clicks among g tied: AUC 1/2, hit 1 - C(g-k, c)/C(g, c), finite all."""
    g, c, k = 20_000, 3_000, 10
    found = by_request(np.arange(g) < c, np.zeros(g), np.zeros(g, int), k=k)
    miss = math.comb(g - k, c) / math.comb(g, c)
    assert found.hit[0] == pytest.approx(1 - miss, rel=1e-9)
    assert found.auc.tolist() == [0.5]
    assert found.ndcg[0] == pytest.approx(c / g)  # more clicks than places
    # E[1/place] = sum over j of P(place > j) / (j (j + 1)), by exact fractions.
    later, mrr = 1.0, 1.0
    for j in range(1, 300):
        later *= (g - c - j + 1) / (g - j + 1)
        mrr -= later / (j * (j + 1))
    assert found.mrr[0] == pytest.approx(mrr, rel=1e-8)


@pytest.mark.parametrize(
    ("label", "score", "request_", "k", "message"),
    [
        ([1, 0], [0.5], [0, 0], 1, r"label and score .* got \[2\] and \[1\]"),
        ([1, 2], [0.5], [0, 0], 1, r"label and score .* got \[2\] and \[1\]"),
        ([1, 0], [0.5, 0.6], [0], 1, r"score and request .* got \[2\] and \[1\]"),
        ([[1, 0]], [[0.5, 0.6]], [[0, 0]], 1, r"must be \[E\]"),
        ([1, 0.5], [0.5, 0.6], [0, 0], 1, r"label must be 0 or 1, got 0\.5 in row 1"),
        ([1, math.nan], [0.5, 0.6], [0, 0], 1, "label must be .* got nan in row 1"),
        ([1, 0, 0], [3, 2, math.nan], [9, 8, 7], 1, "score must .* got nan in row 2"),
        ([1, 0], [0.5, 0.6], [0.5, 0.6], 1, "request is float64: it must be integers"),
        ([1, 0], [0.5, 0.6], [True, False], 1, "request is bool"),
        ([1, 0], [0.5, 0.6], [0, 0], 0, "k is 0: it counts places"),
        ([], [], [], 1, "there is no row to judge"),
        ([1, 1, 0], [1, 2, 3], [4, 4, 5], 1, "none of 2 requests has clicked and"),
        ([1, 0, 1], [1, 2, 3], [1, 2, 3], 1, "Is `request` one number for all rows"),
    ],
)
def test_what_cannot_be_judged_is_refused(label, score, request_, k, message):
    with pytest.raises(ValueError, match=message):
        by_request(label, score, request_, k=k)


# --- expectations over labels --------------------------------------------------------

CHANCES = st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0])


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 2), CHANCES), min_size=1, max_size=8
    )
)
def test_expected_within_auc_goes_through_all_labels(rows):
    request, score, p = map(np.array, zip(*rows, strict=True))
    right = total = 0.0
    for label in product([0, 1], repeat=len(p)):
        label = np.array(label)
        chance = np.where(label, p, 1 - p).prod()
        try:
            found = by_request(label, score, request)
        except ValueError:  # no pair
            continue
        right += chance * (found.auc @ found.pairs)
        total += chance * found.pairs.sum()
    if total == 0:
        with pytest.raises(ValueError, match="p leaves no pair"):
            expected_within_auc(score, p, request)
        return
    got = expected_within_auc(score, p, request)
    assert got == pytest.approx(right / total, **EXACT)


def test_expected_within_auc_of_one_request_is_expected_auc():
    rng = np.random.default_rng(0)
    p, score = rng.random(300), rng.integers(0, 20, 300)
    one = expected_within_auc(score, p, np.zeros(300, int))
    assert one == pytest.approx(expected_auc(score, p), **EXACT)
    requests = np.arange(300) // 6
    best = expected_within_auc(p, p, requests)
    assert best > max(expected_within_auc(score, p, requests), 0.5)
    # A constant of each request moves no order, and pooled pairs fall otherwise.
    shifted = p + requests % 7
    assert expected_within_auc(shifted, p, requests) == pytest.approx(best, **EXACT)
    assert expected_auc(shifted, p) < best - 0.05


@settings(max_examples=60)
@given(
    st.lists(
        st.lists(st.integers(0, 2), min_size=2, max_size=5), min_size=1, max_size=3
    ),
    st.integers(1, 6),
    st.integers(0, 2**16),
)
def test_expected_choice_goes_through_all_choices(requests, k, seed):
    """Every taken row of every request, by ``by_request``, weighted by its chance."""
    rng = np.random.default_rng(seed)
    score = np.concatenate(requests)
    sizes = [len(one) for one in requests]
    request = np.repeat(np.arange(len(sizes)) * 3, sizes)
    p = np.concatenate([rng.dirichlet(np.ones(size)) for size in sizes])
    expected = {}
    for number in np.unique(request):
        (rows,) = np.nonzero(request == number)
        values = [
            [
                getattr(by_request(rows == row, score[rows], request[rows], k=k), name)
                for name in METRICS
            ]
            for row in rows
        ]
        expected[number] = p[rows] @ np.array(values)[..., 0]
    order = rng.permutation(len(p))
    found = expected_choice(score[order], p[order], request[order], k=k)
    expected = np.array(list(expected.values()))
    got = [getattr(found, name) for name in METRICS]
    assert got == pytest.approx(expected.mean(0), **EXACT)
    weighted = np.average(expected[:, 0], weights=np.array(sizes) - 1)
    assert found.auc_pairs == pytest.approx(weighted, **EXACT)
    assert (found.requests, found.skipped) == (len(sizes), 0)
    best = expected_choice(p, p, request, k=k)
    assert all(getattr(best, name) >= getattr(found, name) - 1e-12 for name in METRICS)


@pytest.mark.parametrize(
    ("p", "request_", "message"),
    [
        ([0.5, 0.4, 1.0], [3, 3, 4], r"p adds to 0\.900000 in request 3: one of"),
        ([0.5, 0.5, 1.0], [3, 3, 4], "request 4 has one row: no order"),
        ([0.5, 1.5, 1.0], [3, 3, 4], r"p must be in \[0, 1\], got 1\.5 in row 1"),
        ([0.5, 0.5], [3, 3, 4], r"score and p .* got \[3\] and \[2\]"),
        ([0.5, 0.5, 1.0], [0.1, 0.2, 0.3], "request is float64"),
    ],
)
def test_chances_that_are_none_are_refused(p, request_, message):
    with pytest.raises(ValueError, match=message):
        expected_choice([1, 2, 3], p, request_)


@pytest.mark.parametrize(
    ("p", "message"),
    [
        ([0.3, 0.3, 0.3], "p leaves no pair"),  # each row alone in its request
        ([0.5, math.nan, 1.0], "got nan in row 1"),
        ([0.5, 0.5], r"score and p .* got \[3\] and \[2\]"),
    ],
)
def test_labels_that_leave_no_pair_are_refused(p, message):
    with pytest.raises(ValueError, match=message):
        expected_within_auc([1, 2, 3], p, [3, 4, 5])


# --- bootstrap -----------------------------------------------------------------------


def clustered(seed, users=50, each=40):
    """Values that all requests of a user share, and whose they are: users interleaved.

    The mean has the standard error s / sqrt(users); were rows drawn, s / sqrt(rows).
    """
    of_user = np.random.default_rng(seed).normal(size=users)
    user = np.tile(np.arange(users) * 3 + 1, each)
    return of_user[user // 3], user, of_user.std() / math.sqrt(users)


def test_users_are_drawn_and_not_their_rows():
    values, user, error = clustered(0)
    interval = bootstrap(values, user)
    # The bounds are quantiles of 2000 draws, each known to 6 % of `error`; rows would
    # give an interval sqrt(40) times as narrow.
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert interval.n == 50
    assert interval.mean == pytest.approx(values.mean())
    alone = bootstrap(values, np.arange(len(values)))
    assert alone.high - alone.low == pytest.approx(
        2 * 1.96 * error / math.sqrt(40), rel=0.15
    )


def test_a_draw_takes_all_requests_of_a_user():
    """Of two users, of 1 and 3 requests, a draw is 0, 1, or 3/4; never a mean of two
    means, and never one request of the three.
    """
    values, user = [0.0, 1.0, 1.0, 1.0], [5, 2, 2, 2]
    seen = {
        value
        for confidence in (0.3, 0.9)
        for seed in range(5)
        for interval in [bootstrap(values, user, seed=seed, confidence=confidence)]
        for value in (interval.low, interval.high)
    }
    assert seen == {0.0, 0.75, 1.0}
    assert bootstrap(values, user).mean == 0.75


def test_an_interval_holds_the_truth_as_often_as_it_says():
    rng, held = np.random.default_rng(0), 0
    for seed in range(200):
        each = rng.integers(1, 6, 100)
        user = np.repeat(np.arange(100), each)
        values = rng.normal(size=100)[user] + rng.normal(size=len(user))
        held += 0 in bootstrap(values, user, draws=300, seed=seed, confidence=0.9)
    # A binomial of 200 with p = 0.9: four standard deviations are 17.
    assert abs(held - 180) <= 17


def test_a_seed_decides_the_draws():
    values, user, _ = clustered(1)
    assert bootstrap(values, user, seed=3) == bootstrap(values, user, seed=3)
    assert bootstrap(values, user, seed=3) != bootstrap(values, user, seed=4)
    order = np.random.default_rng(0).permutation(len(user))
    shuffled = bootstrap(values[order], user[order], seed=3)
    assert shuffled.low == pytest.approx(bootstrap(values, user, seed=3).low)


def test_draws_come_in_blocks_that_change_none(monkeypatch):
    values, user, _ = clustered(2)
    whole = bootstrap(values, user, draws=101)
    for at_once in (7 * 50, 1):
        monkeypatch.setattr(ranking, "AT_ONCE", at_once)
        found = bootstrap(values, user, draws=101)
        # A product of another shape may add in another order.
        assert [found.low, found.high] == pytest.approx(
            [whole.low, whole.high], **EXACT
        )


def test_seeds_are_averaged_first():
    values, user, _ = clustered(4)
    seeds = np.stack([values, values + 1, values - 4])
    assert bootstrap(seeds, user) == bootstrap(seeds.mean(0), user)
    assert bootstrap(torch.tensor(seeds), user) == bootstrap(seeds.mean(0), user)


def test_weights_count_requests_more_than_once():
    rng = np.random.default_rng(5)
    values, user = rng.normal(size=60), rng.integers(0, 20, 60)
    weight = rng.integers(1, 5, 60)
    weighted = bootstrap(values, user, weight=weight)
    repeated = bootstrap(np.repeat(values, weight), np.repeat(user, weight))
    assert weighted.mean == pytest.approx(np.average(values, weights=weight))
    assert [weighted.low, weighted.high] == pytest.approx([repeated.low, repeated.high])
    assert weighted.mean != pytest.approx(bootstrap(values, user).mean)


def test_pairs_as_weights_give_an_interval_of_auc_pairs():
    label, score, request = draw(7, scores=100)
    found = by_request(label, score, request)
    interval = bootstrap(found.auc, found.request % 9, weight=found.pairs)
    assert interval.mean == pytest.approx(found.means().auc_pairs)
    assert found.means().auc_pairs in interval


def test_what_two_models_share_drops_out_of_their_difference():
    values, user, error = clustered(6)
    same = paired_bootstrap(values, values, user)
    assert (same.mean, same.low, same.high, same.n) == (0, 0, 0, 50)
    rng = np.random.default_rng(0)
    better = values + 0.1 + 0.01 * rng.normal(size=len(values))
    gap = paired_bootstrap(better, values, user)
    assert gap.low > 0.09 and gap.high < 0.11
    assert gap.mean == pytest.approx((better - values).mean())
    assert error > 0.1  # of either alone: their intervals overlap
    turned = paired_bootstrap(values, better, user)
    assert turned.mean == pytest.approx(-gap.mean)
    two = paired_bootstrap(np.stack([better, better]), values, user, seed=0)
    assert [two.low, two.high] == pytest.approx([gap.low, gap.high])
    weight = rng.random(len(user)) + 0.5
    weighted = paired_bootstrap(better, values, user, weight=weight, confidence=0.5)
    assert weighted == bootstrap(better - values, user, weight=weight, confidence=0.5)


@pytest.mark.parametrize(
    ("values", "user", "weight", "message"),
    [
        ([1.0, 2.0], [0], None, r"values and user .* got \[2\] and \[1\]"),
        ([[[1.0]]], [0], None, r"must be \[E\]"),
        ([1.0, math.nan], [0, 1], None, "values must be finite, got nan in row 1"),
        ([1.0, 2.0], [0, 1], [1.0], r"weight and values .* got \[1\] and \[2\]"),
        ([1.0, 2.0], [0, 1], [1.0, 0.0], r"weight must be above 0, got 0\.0 in row 1"),
        ([1.0, 2.0], [0, 1], [1.0, math.nan], "weight must be above 0, got nan"),
        ([1.0, 2.0], [3, 3], None, "needs at least 2 of them, got 1"),
        ([], [], None, "needs at least 2 of them, got 0"),
    ],
)
def test_what_gives_no_interval_is_refused(values, user, weight, message):
    with pytest.raises(ValueError, match=message):
        bootstrap(values, user, weight=weight)


def test_two_models_of_other_requests_are_not_compared():
    with pytest.raises(ValueError, match=r"a and b .* got \[3\] and \[1\]"):
        paired_bootstrap([1.0, 2.0, 3.0], [1.0], [0, 1, 2])
