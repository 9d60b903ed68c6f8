"""The planted world: its click model, and guesses against direct integration."""

import dataclasses
import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from scipy.special import expit, log_expit, logit

from recsys_edu.ceilings import expected_ndcg
from recsys_edu.data import Histories, split_by_time
from recsys_edu.data.synthetic import DAY, _draw_of_topic, planted_world
from recsys_edu.metrics import best_auc, expected_auc
from recsys_edu.ranking import expected_within_auc

TINY = dict(n_impressions=60, n_users=4, n_items=6, n_topics=2, n_segments=2)
SEEDS = st.integers(0, 2**16)


@pytest.fixture(scope="module")
def world():
    return planted_world(seed=0, n_impressions=30_000, n_users=300, n_items=100)


@pytest.fixture(scope="module")
def histories(world):
    return Histories.from_log(world.log)


def coarse(world, seconds):
    """The same world with a slow clock, so that many timestamps are equal."""
    log = world.log
    timestamp = log.timestamp // seconds * seconds
    return dataclasses.replace(world, log=dataclasses.replace(log, timestamp=timestamp))


def known_by_loop(world, row, max_events):
    """Rows of the strictly earlier events that may be known, of the row's topic."""
    log, topic = world.log, world.topic[world.log.item]
    earlier = [
        other
        for other in range(len(log))
        if log.user[other] == log.user[row]
        and log.timestamp[other] < log.timestamp[row]
    ]
    if max_events is not None:
        earlier = earlier[max(0, len(earlier) - max_events) :]
    return [other for other in earlier if topic[other] == topic[row]]


def guess_by_integration(world, row, max_events):
    """E[p | labels of the known events] for one row: two adaptive integrals over z."""
    known = known_by_loop(world, row, max_events)
    public, label = world.public_logit.tolist(), world.log.label.tolist()

    def p(row, z):
        return 1 / (1 + math.exp(-public[row] - world.private_strength * z))

    def density(z):
        value = math.exp(-z * z / 2)
        for event in known:
            value *= p(event, z) if label[event] else 1 - p(event, z)
        return value

    options = dict(epsabs=0, epsrel=1e-9, limit=200)
    total, _ = integrate.quad(density, -9, 9, **options)
    clicks, _ = integrate.quad(lambda z: density(z) * p(row, z), -9, 9, **options)
    return clicks / total


# --- the guess -----------------------------------------------------------------------


@given(
    seed=SEEDS,
    max_events=st.sampled_from([None, 0, 1, 3, 1000]),
    tick=st.sampled_from([1, DAY, 100 * DAY]),
    strength=st.sampled_from([0.0, 1.5, 6.0]),
)
def test_the_guess_is_the_posterior_mean(seed, max_events, tick, strength):
    world = coarse(planted_world(seed=seed, strength=strength, **TINY), tick)
    guess = world.best_guess(Histories.from_log(world.log), max_events)
    for row in np.random.default_rng(seed).choice(60, 3, replace=False):
        expected = guess_by_integration(world, row, max_events)
        # The promise is 1e-8; the integrals here are good to 1e-9 of themselves.
        assert abs(guess[row] - expected) < 1.1e-8


def test_ties_are_not_the_past():
    """With one moment in the world, nobody knows anything."""
    world = coarse(planted_world(seed=0, **TINY), 1_000 * DAY)
    assert set(world.log.timestamp) == {0}
    histories = Histories.from_log(world.log)
    nothing = world.best_guess(histories, max_events=0)
    assert (world.best_guess(histories) == nothing).all()


def test_a_long_history_is_as_exact():
    """600 events of one taste: a posterior far narrower than the prior."""
    world = planted_world(
        seed=0, n_impressions=600, n_users=1, n_items=5, n_topics=1, rho=0.0
    )
    guess = world.best_guess(Histories.from_log(world.log))
    z = np.linspace(-9, 9, 20_001)
    private = world.private_strength * z
    log_density = -(z**2) / 2
    known_until = np.searchsorted(world.log.timestamp, world.log.timestamp)
    for row in range(600):
        density = np.exp(log_density - log_density.max())
        p = expit(world.public_logit[row] + private)
        assert known_until[row] == row  # no ties: each event joins after its row
        assert abs(guess[row] - density @ p / density.sum()) < 1e-8
        sign = 1 if world.log.label[row] else -1
        log_density += log_expit(sign * (world.public_logit[row] + private))
    spread = np.sqrt(
        density @ z**2 / density.sum() - (density @ z / density.sum()) ** 2
    )
    assert spread < 0.1


def test_without_history_the_guess_is_one_integral(world, histories):
    guess = world.best_guess(histories, max_events=0)

    def clicks(z, public):
        return stats.norm.pdf(z) * expit(public + world.private_strength * z)

    for row in range(0, len(guess), 3_000):
        arguments = (world.public_logit[row],)
        expected, _ = integrate.quad(clicks, -9, 9, arguments, epsabs=1e-12)
        assert abs(guess[row] - expected) < 1e-8


@given(seed=SEEDS, moment=st.integers(0, 200), tick=st.sampled_from([1, 10 * DAY]))
def test_labels_at_or_after_a_moment_change_no_guess_of_it(seed, moment, tick):
    world = coarse(planted_world(seed=seed, **TINY), tick)
    log = world.log
    later = log.timestamp >= moment * DAY
    flipped = np.where(later, 1 - log.label, log.label)
    other = dataclasses.replace(world, log=dataclasses.replace(log, label=flipped))
    histories = Histories.from_log(log)
    before, after = world.best_guess(histories), other.best_guess(histories)
    now = log.timestamp <= moment * DAY
    # Likelihoods are differences of running sums of E terms, each below `term`; sums
    # of other users' later events round differently. Both integrals feel it.
    term = np.abs(world.public_logit).max() + 8 * world.private_strength + 1
    rounding = 2 * 2 * len(log) * (len(log) * term) * np.finfo(float).eps
    np.testing.assert_allclose(after[now], before[now], rtol=rounding)


@pytest.mark.parametrize("max_events", [0, 1, 10, None])
def test_guesses_are_calibrated(world, histories, max_events):
    """Of the rows guessed at g, a share g is clicked: in all, and in each tenth."""
    guess = world.best_guess(histories, max_events)
    surprise = world.log.label - guess
    tenth = np.searchsorted(np.quantile(guess, np.arange(0.1, 0.95, 0.1)), guess)
    for rows in [np.full(len(guess), True), *(tenth == k for k in range(10))]:
        # Users are independent; a user's surprises need not be.
        sums = np.bincount(world.log.user[rows], surprise[rows])
        assert abs(sums.sum()) < 5 * np.sqrt((sums**2).sum())
    # Given all events, surprises are uncorrelated even within a user, and the bound
    # is as tight as for independent coins.
    if max_events is None:
        assert abs(surprise.sum()) < 5 * np.sqrt((guess * (1 - guess)).sum())


def test_more_events_rank_better_and_none_as_well_as_the_truth(world, histories):
    p = world.probability
    guesses = [world.best_guess(histories, n) for n in (0, 1, 3, 10, 30, 100, None)]
    auc = [expected_auc(guess, p) for guess in guesses]
    assert auc == sorted(auc) and auc[0] + 0.05 < auc[-1]
    assert auc[-1] < best_auc(p)
    loss = [-(p * np.log(g) + (1 - p) * np.log(1 - g)).mean() for g in guesses]
    assert loss == sorted(loss, reverse=True)
    assert loss[-1] > -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean()


def test_with_nothing_private_there_is_nothing_to_guess():
    world = planted_world(seed=0, rho=1.0, **TINY)
    guess = world.best_guess(Histories.from_log(world.log))
    np.testing.assert_allclose(guess, world.probability, rtol=1e-8)


# --- interest that returns -----------------------------------------------------------


def dwelling(seed=0, dwell=4, n_topics=3, n_users=5, **options):
    sizes = dict(n_impressions=60 * n_users, n_users=n_users, n_items=200)
    return planted_world(seed=seed, dwell=dwell, n_topics=n_topics, **sizes | options)


def topics_of(world, user):
    """The topics of a user's impressions, as `Histories` has them in order."""
    log = world.log
    return world.topic[
        log.item[log.user == user]
    ]  # rows of equal time keep their order


@given(seed=SEEDS, dwell=st.integers(1, 9), n_topics=st.integers(1, 4))
def test_a_topic_stays_and_returns_after_all_others(seed, dwell, n_topics):
    world = dwelling(seed, dwell, n_topics)
    for user in np.unique(world.log.user):
        seen = topics_of(world, user)
        visits = seen[::dwell]
        assert len(set(visits[:n_topics])) == len(visits[:n_topics])
        tour = np.resize(visits[:n_topics], len(visits))  # again and again
        np.testing.assert_array_equal(seen, np.repeat(tour, dwell)[: len(seen)])


def test_users_have_orders_of_their_own():
    world = dwelling(n_users=400, dwell=1, n_impressions=40_000)
    orders = [tuple(topics_of(world, user)[:3]) for user in range(400)]
    counts = [orders.count(each) for each in set(orders) if len(each) == 3]
    assert len(counts) == 6 and stats.chisquare(counts).pvalue > 1e-6


def test_items_are_drawn_by_popularity_within_the_topic():
    world = dwelling(n_users=50, dwell=10, n_impressions=100_000)
    for k in range(3):
        items = np.flatnonzero(world.topic == k)
        shown = np.bincount(world.log.item, minlength=200)[items]
        share = 1 / (1 + items)
        expected = share / share.sum() * shown.sum()
        assert stats.chisquare(shown, expected).pvalue > 1e-6


def test_a_draw_that_is_rounded_up_stays_in_its_topic():
    class Highest:
        def uniform(self, low, high):
            return high

    topic, popularity = np.array([1, 0, 1, 0]), np.array([0.1, 0.2, 0.3, 0.4])
    item = _draw_of_topic(Highest(), np.array([0, 1, 1]), 2, topic, popularity)
    assert item.tolist() == [3, 2, 2]


def test_to_dwell_on_a_topic_it_must_have_an_item():
    with pytest.raises(ValueError, match=r"topic \d has none of the 2 items"):
        planted_world(seed=0, dwell=1, n_items=2, n_topics=3)
    planted_world(seed=0, dwell=0, n_items=2, n_topics=3)


def test_quality_is_the_spread_of_the_items():
    one, none = (
        planted_world(seed=0, rho=0.0, quality=q, n_impressions=20_000)
        for q in (2.0, 0.0)
    )
    assert set(none.public_logit) == {-1.0}
    _, first = np.unique(one.log.item, return_index=True)
    quality = one.public_logit[first] + 1
    assert abs(quality.std() / 2 - 1) < 5 / np.sqrt(2 * len(first))


@given(seed=SEEDS, dwell=st.sampled_from([0, 3]), tick=st.sampled_from([1, 10 * DAY]))
def test_absence_counts_the_events_since(seed, dwell, tick):
    world = coarse(dwelling(seed, dwell), tick)
    absence = world.absence(Histories.from_log(world.log))
    log, topic = world.log, world.topic[world.log.item]
    for row in np.random.default_rng(seed).choice(300, 5, replace=False):
        earlier = (log.user == log.user[row]) & (log.timestamp < log.timestamp[row])
        since = topic[earlier][::-1] == topic[row]  # newest first
        assert absence[row] == (since.argmax() if since.any() else -1)


@given(seed=SEEDS, known=st.integers(0, 9), tick=st.sampled_from([1, 10 * DAY]))
def test_who_reads_fewer_events_than_the_absence_knows_nothing(seed, known, tick):
    """Not even with qualities and segments: the guess is the one about a stranger."""
    world = coarse(dwelling(seed), tick)
    histories = Histories.from_log(world.log)
    absence = world.absence(histories)
    last, stranger = (world.best_guess(histories, n) for n in (known, 0))
    away = (absence >= known) | (absence == -1)
    # The same integrals, to rounding. What is known moves a guess by less than this
    # in one row of billions.
    knows = np.abs(last - stranger) > 1e-12
    assert np.array_equal(knows, ~away)


# --- requests of several candidates --------------------------------------------------


@given(seed=SEEDS, m=st.sampled_from([2, 3, 5]), n_items=st.sampled_from([10, 40]))
def test_a_request_shows_different_items_to_one_user_at_one_time(seed, m, n_items):
    log = planted_world(seed=seed, candidates=m, **TINY | dict(n_items=n_items)).log
    number, first, size = np.unique(log.request, return_index=True, return_counts=True)
    assert np.array_equal(number, np.arange(60 // m)) and (size == m).all()
    assert len(np.unique(np.stack([log.request, log.item]), axis=1).T) == 60
    for column in (log.user, log.timestamp):
        assert (column == column[first][log.request]).all()
    assert log.event is None  # what was skipped is remembered too


@given(
    seed=SEEDS,
    max_events=st.sampled_from([None, 0, 7]),
    tick=st.sampled_from([1, DAY, 100 * DAY]),
)
def test_the_guess_about_a_candidate_is_the_posterior_mean(seed, max_events, tick):
    """The other candidates of its request are no past of it."""
    sizes = TINY | dict(n_items=12, candidates=5)
    world = coarse(planted_world(seed=seed, **sizes), tick)
    histories = Histories.from_log(world.log)
    guess = world.best_guess(histories, max_events)
    for row in np.random.default_rng(seed).choice(60, 2, replace=False):
        together = world.log.request == world.log.request[row]
        assert len(set(histories.end[together])) == 1
        expected = guess_by_integration(world, row, max_events)
        assert abs(guess[row] - expected) < 1.1e-8


def test_within_a_request_more_events_rank_better_too():
    world = planted_world(
        seed=0, n_impressions=30_000, n_users=300, n_items=100, candidates=10
    )
    histories, request = Histories.from_log(world.log), world.log.request
    p = world.probability
    guesses = [world.best_guess(histories, n) for n in (0, 10, 100, None)]
    for worth in (expected_within_auc, expected_ndcg):
        values = [worth(guess, p, request) for guess in (*guesses, p)]
        assert values == sorted(values) and values[0] + 0.03 < values[3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(candidates=7), "60 impressions are no requests of 7 candidates"),
        (dict(candidates=0), "no requests of 0 candidates"),
        (dict(candidates=4), "4 different candidates are over half of the 6 items"),
        (dict(candidates=3, dwell=2), "dwells on a topic is shown one item at a time"),
    ],
)
def test_requests_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        planted_world(seed=0, **TINY | options)


# --- the world -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "digest"),
    [
        (dict(seed=0), "16e8dce127bacf3c"),
        (dict(seed=1, n_users=30, n_items=200, dwell=5), "0df38f3b542e9f55"),
    ],
)
def test_worlds_stay_what_they_were(options, digest):
    """Bit for bit: records were made in them."""
    log = planted_world(n_impressions=2000, **options).log
    found = hashlib.sha256()
    for column in (log.user, log.item, log.timestamp, log.label):
        found.update(column.tobytes())
    assert found.hexdigest()[:16] == digest
    assert log.request is None and log.event is None


def arrays(world):
    log = world.log
    return [
        log.user, log.item, log.timestamp, log.label, log.action,
        log.users.sparse["segment"], log.items.sparse["topic"],
        world.probability, world.public_logit, world.topic,
    ]  # fmt: skip


@given(seed=SEEDS, dwell=st.sampled_from([0, 5]))
def test_equal_arguments_plant_equal_worlds(seed, dwell):
    one, same, other = (
        planted_world(seed=s, dwell=dwell, **TINY | dict(n_items=200))
        for s in (seed, seed, seed + 1)
    )
    assert all(map(np.array_equal, arrays(one), arrays(same)))
    assert one.private_strength == same.private_strength
    assert not np.array_equal(one.probability, other.probability)


def group(*columns):
    """(first row of each group of equal columns, group of each row)"""
    _, first, inverse = np.unique(
        np.stack(columns), axis=1, return_index=True, return_inverse=True
    )
    return first, inverse


def test_the_click_model(world):
    log, topic = world.log, world.topic[world.log.item]
    segment = log.users.sparse["segment"][log.user]
    # The public part reads segment and item, and adds a quality to a lean.
    first, inverse = group(segment, log.item)
    public = world.public_logit[first]
    assert (world.public_logit == public[inverse]).all()
    leans = []
    for k in range(8):
        cells = {
            (segment[row], log.item[row]): world.public_logit[row]
            for row in first[topic[first] == k]
        }
        items = {item for _, item in cells}
        whole = [item for item in items if all((s, item) in cells for s in range(1, 5))]
        table = np.array([[cells[s, item] for item in whole] for s in range(1, 5)])
        steps = table - table[0]  # between segments, equal for all items of a topic
        np.testing.assert_allclose(steps, np.tile(steps[:, :1], len(whole)), atol=1e-12)
        leans.append(steps[:, 0])
    assert len(np.unique(np.round(leans, 6), axis=0)) == 8
    # The private part is one draw for each user and topic.
    z = (logit(world.probability) - world.public_logit) / world.private_strength
    first, inverse = group(log.user, topic)
    np.testing.assert_allclose(z, z[first][inverse], atol=1e-9)
    assert stats.kstest(z[first], "norm").pvalue > 1e-6
    assert world.private_strength == 1.5 * math.sqrt(1 - 0.4**2)


def test_labels_are_drawn_from_the_probabilities(world):
    surprise = world.log.label - world.probability
    tenth = np.searchsorted(
        np.quantile(world.probability, np.arange(0.1, 0.95, 0.1)), world.probability
    )
    for rows in [np.full(len(surprise), True), *(tenth == k for k in range(10))]:
        variance = (world.probability * (1 - world.probability))[rows].sum()
        assert abs(surprise[rows].sum()) < 5 * math.sqrt(variance)


def test_the_log_says_what_a_model_may_read(world):
    log = world.log
    assert (log.action == log.label).all() and log.n_actions == 2
    assert set(log.users.sparse) == {"user_id", "segment"}
    assert set(log.items.sparse) == {"item_id", "topic"}
    assert (log.items.sparse["topic"] == world.topic + 1).all()
    assert log.users.sparse["user_id"].tolist() == list(range(1, 301))
    for features in (log.users, log.items):
        for name, values in features.sparse.items():
            assert values.min() >= 1  # 0 is for the unknown
            assert features.cardinality[name] == values.max() + 1
    assert set(log.users.sparse["segment"]) == {1, 2, 3, 4}


def test_users_come_and_go(world):
    """So the users of a test by time are mostly new."""
    log = world.log
    for user in range(log.n_users):
        moments = log.timestamp[log.user == user]
        assert np.ptp(moments) <= 0.1 * 200 * DAY
    assert log.timestamp.max() < 200 * DAY
    split = split_by_time(log)
    new = ~np.isin(log.user[split.test], log.user[split.train])
    assert new.mean() > 0.8


def test_popularity_is_zipf_s_and_activity_has_a_tail(world):
    share = 1 / np.arange(1, 101)
    expected = share / share.sum() * len(world.log)
    shown = np.bincount(world.log.item, minlength=100)
    assert stats.chisquare(shown, expected).pvalue > 1e-6
    active = np.sort(np.bincount(world.log.user, minlength=300))[::-1]
    # A log-normal's top tenth holds Phi(1 - 1.28) = 39 % of it.
    assert 0.3 < active[:30].sum() / active.sum() < 0.5
