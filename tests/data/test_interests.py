"""The world of several interests: its choice model, and guesses against enumeration."""

import dataclasses
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recsys_edu.data import Histories
from recsys_edu.data.interests import HOUR, interest_world
from recsys_edu.ranking import expected_choice

SEEDS = st.integers(0, 2**16)
STRAYS = st.sampled_from([0.0, 0.2, 1.0])
TINY = dict(n_users=5, n_topics=6, items_per_topic=3, interests=(1, 2, 3))
SHORT = dict(n_before=5, n_requests=3, candidates=4)


@pytest.fixture(scope="module")
def world():
    return interest_world(seed=0, n_users=250, n_topics=40, candidates=6)


@pytest.fixture(scope="module")
def histories(world):
    return Histories.from_log(world.log)


@pytest.fixture(scope="module")
def rows(world):
    return np.flatnonzero(world.asked)


def of_topic(world, interests, topic):
    """P(topic | interests), as the module says it."""
    of_interest = (1 - world.stray) / len(interests) if topic in interests else 0
    return of_interest + world.stray / world.n_topics


def shares(weights):
    return np.array(weights) / sum(weights)


def guess_by_enumeration(world, row, max_events):
    """Of all rows of one row's request: every set of interests has its say."""
    log, k = world.log, world.n_topics
    earlier = [
        other
        for other in range(len(log))
        if log.user[other] == log.user[row]
        and log.timestamp[other] < log.timestamp[row]
        and log.event[other]
    ]
    if max_events is not None:
        earlier = earlier[max(0, len(earlier) - max_events) :]
    seen = [world.topic[log.item[other]] for other in earlier]
    request = np.flatnonzero(log.request == log.request[row])
    weights = np.zeros(len(request))
    for j in world.counts:
        for interests in combinations(range(k), j):
            p = 1 / comb(k, j)
            for topic in seen:
                p *= of_topic(world, interests, topic)
            weights += [
                p * of_topic(world, interests, world.topic[log.item[each]])
                for each in request
            ]
    return request, shares(weights)


# --- the guess -----------------------------------------------------------------------


@settings(max_examples=30)
@given(seed=SEEDS, stray=STRAYS, max_events=st.sampled_from([None, 0, 1, 4]))
def test_the_guess_sums_over_all_sets_of_interests(seed, stray, max_events):
    world = interest_world(seed=seed, stray=stray, **TINY, **SHORT)
    rows = np.flatnonzero(world.asked)
    guess = np.zeros(len(world.log))
    guess[rows] = world.best_guess(Histories.from_log(world.log), rows, max_events)
    for row in np.random.default_rng(seed).choice(rows, 2):
        request, expected = guess_by_enumeration(world, row, max_events)
        # Logarithms of some 30 at most, each sum of a few dozen rounded terms.
        np.testing.assert_allclose(guess[request], expected, rtol=1e-11, atol=1e-300)


@given(seed=SEEDS, stray=STRAYS)
def test_to_whoever_knows_the_interests_the_chance_is_bayes(seed, stray):
    world = interest_world(seed=seed, stray=stray, **TINY, **SHORT)
    log, rows = world.log, np.flatnonzero(world.asked)
    p = np.zeros(len(log))
    p[rows] = world.chance(rows)
    for number in np.unique(log.request[rows])[::4]:
        request = np.flatnonzero(log.request == number)
        own = world.interests[log.user[request[0]]]
        own = set(own[own >= 0].tolist())
        expected = [of_topic(world, own, world.topic[i]) for i in log.item[request]]
        np.testing.assert_allclose(p[request], shares(expected), rtol=1e-12)


def test_a_long_history_neither_overflows_nor_is_lost():
    world = interest_world(
        seed=0, n_users=20, n_topics=1000, n_before=600, n_requests=1, stray=0.1
    )
    rows = np.flatnonzero(world.asked)
    guess = world.best_guess(Histories.from_log(world.log), rows)
    # After 600 events the interests are known, all of them.
    np.testing.assert_allclose(guess, world.chance(rows), rtol=1e-6)


def test_without_events_there_is_nothing_to_know(world, histories, rows):
    guess = world.best_guess(histories, rows, max_events=0)
    np.testing.assert_allclose(guess, 1 / 6, rtol=1e-12)


def test_what_comes_later_changes_no_guess(world, histories, rows):
    """Other items from the third request on: the first two of each user stand."""
    log = world.log
    start = np.full(log.n_users, np.iinfo(np.int64).max)
    np.minimum.at(start, log.user, log.timestamp)
    later = log.timestamp - start[log.user] >= (40 + 2) * HOUR
    item = np.where(later, (log.item + 7) % log.n_items, log.item)
    other = dataclasses.replace(world, log=dataclasses.replace(log, item=item))
    before = world.best_guess(histories, rows)
    after = other.best_guess(Histories.from_log(other.log), rows)
    assert np.array_equal(before[~later[rows]], after[~later[rows]])
    assert not np.array_equal(before, after)


def test_the_drawn_labels_agree_with_the_chances(world, histories, rows):
    """Of the rows guessed at g, a share g is taken: in each tenth of them."""
    label = world.log.label[rows]
    for guess in (world.chance(rows), world.best_guess(histories, rows)):
        tenth = np.searchsorted(np.quantile(guess, np.arange(0.1, 0.95, 0.1)), guess)
        for k in np.unique(tenth):
            at = tenth == k
            # Labels of one request are not independent, but never positively so.
            deviation = np.sqrt((guess * (1 - guess))[at].sum())
            assert abs((label - guess)[at].sum()) < 5 * deviation


def test_more_events_rank_better_and_none_as_well_as_the_interests(
    world, histories, rows
):
    request, p = world.log.request[rows], world.best_guess(histories, rows)
    worth = [
        expected_choice(world.best_guess(histories, rows, n), p, request)
        for n in (0, 1, 4, 16, None)
    ]
    known = expected_choice(*[world.chance(rows)] * 2, request)
    for name in ("auc", "ndcg", "mrr"):
        values = [getattr(each, name) for each in (*worth, known)]
        assert values == sorted(values) and values[0] + 0.2 < values[-2]
    assert abs(worth[0].auc - 0.5) < 1e-12


def test_more_interests_at_once_take_more_events_to_know():
    """Of 8 interests, 8 events tell much less than of one; a whole history does not."""
    world = interest_world(seed=0, n_users=150, candidates=20)
    rows, histories = np.flatnonzero(world.asked), Histories.from_log(world.log)
    p, last = (world.best_guess(histories, rows, n) for n in (None, 8))
    lost = []
    for j in world.counts:
        of = world.n_interests[world.log.user[rows]] == j
        request = world.log.request[rows[of]]
        known, whole = (expected_choice(s[of], p[of], request).auc for s in (last, p))
        lost.append(whole - known)
    assert lost == sorted(lost) and lost[0] < 0.01 and lost[-1] > 0.1


def test_a_part_of_a_request_is_refused(world, histories, rows):
    for guess in (
        lambda rows: world.best_guess(histories, rows),
        world.chance,
    ):
        with pytest.raises(ValueError, match="take whole requests"):
            guess(rows[1:])


# --- the world -----------------------------------------------------------------------


@given(seed=SEEDS, m=st.integers(2, 9), n_before=st.integers(0, 3))
def test_requests_are_valid(seed, m, n_before):
    sizes = np.array([m, m, 2, 3, 4])
    world = interest_world(
        seed=seed, n_before=n_before, n_requests=2, candidates=sizes, **TINY
    )
    log = world.log
    number, first, size = np.unique(log.request, return_index=True, return_counts=True)
    assert (np.bincount(log.request, log.label)[number] == 1).all()  # one is taken
    assert len(np.unique(np.stack([log.request, log.item]), axis=1).T) == len(log)
    assert (log.event == (log.label == 1)).all()
    for user in range(5):
        of = log.user[first] == user
        assert sorted(size[of]) == [1] * n_before + [sizes[user]] * 2
    for column in (log.user, log.timestamp):  # one user, one moment
        assert (column == column[first][np.searchsorted(number, log.request)]).all()
    assert (world.asked == (size[np.searchsorted(number, log.request)] > 1)).all()
    lengths = Histories.from_log(log).lengths(np.flatnonzero(world.asked))
    assert set(lengths) == {n_before, n_before + 1}


@given(seed=SEEDS)
def test_equal_arguments_make_equal_worlds(seed):
    one, same, other = (
        interest_world(seed=s, **TINY, **SHORT) for s in (seed, seed, seed + 1)
    )
    columns = ("user", "item", "timestamp", "label", "action", "request", "event")
    for name in columns:
        assert np.array_equal(getattr(one.log, name), getattr(same.log, name))
    assert np.array_equal(one.interests, same.interests)
    assert not np.array_equal(one.log.item, other.log.item)


def test_nothing_but_the_history_tells_the_taken_one(world, rows):
    """Neither its place, nor what it looks like."""
    log = world.log
    _, first, number = np.unique(log.request[rows], True, True)
    place = (np.arange(len(rows)) - first[number])[log.event[rows]]
    assert stats.chisquare(np.bincount(place, minlength=6)).pvalue > 1e-6
    others = log.item[rows[~log.event[rows]]]
    assert stats.chisquare(np.bincount(others, minlength=400)).pvalue > 1e-6
    assert set(log.action) == {0}
    assert set(log.users.sparse) == {"user_id"}
    assert set(log.items.sparse) == {"item_id", "topic"}
    assert (log.items.sparse["topic"] == world.topic + 1).all()


def test_events_are_of_the_interests_or_stray():
    world = interest_world(
        seed=1, n_users=300, n_topics=20, n_before=200, n_requests=1, stray=0.3
    )
    log = world.log
    user, topic = log.user[log.event], world.topic[log.item[log.event]]
    assert set(world.n_interests) == {1, 2, 4, 8}
    assert stats.chisquare(np.bincount(world.n_interests)[[1, 2, 4, 8]]).pvalue > 1e-6
    expected = np.array(
        [
            [of_topic(world, set(own[own >= 0]), k) for k in range(20)]
            for own in world.interests
        ]
    )
    np.testing.assert_allclose(expected.sum(1), 1)
    drawn = np.zeros((300, 20))
    np.add.at(drawn, (user, topic), 1)
    assert stats.chisquare(drawn.ravel(), (201 * expected).ravel()).pvalue > 1e-6
    for own in world.interests:
        real = own[own >= 0]
        assert len(set(real)) == len(real) and (own[len(real) :] == -1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(interests=(0, 1)), r"interests are \(0, 1\): each must lie in 1 .. 6"),
        (dict(interests=(7,)), r"interests are \(7,\)"),
        (dict(stray=1.5), "stray is 1.5: a share lies in 0 .. 1"),
        (dict(candidates=1), "candidates are 1 to 1: show 2 at least"),
        (dict(candidates=10), "at most half of the 18 items"),
    ],
)
def test_worlds_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        interest_world(seed=0, **TINY | SHORT | options)
