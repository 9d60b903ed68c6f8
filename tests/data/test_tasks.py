"""Tasks of a log: who is asked what, drawn how, and that nothing else changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_edu.data import Features, Histories, split_by_time
from recsys_edu.data.synthetic import planted_world
from recsys_edu.data.tasks import next_item, rating
from recsys_edu.ranking import by_request

COLUMNS = ("user", "item", "timestamp", "label", "action", "request", "event")


@pytest.fixture(scope="module")
def world():
    """2,000 events of 40 users, who take items again, and 300 items."""
    return planted_world(seed=2, n_impressions=2_000, n_users=40, n_items=300).log


def catalogue(n):
    return Features.fit(np.arange(n) + 100)


def taking(make_log, user, timestamp, item, n_items, **columns):
    """A log in which users take items of a catalogue of n."""
    item = np.asarray(item, np.int64)
    return make_log(user, timestamp, item=item, items=catalogue(n_items), **columns)


def requests(task):
    """(rows, part) of each request, in order of its number."""
    parts = ("train", "validation", "test")
    part = {row: name for name in parts for row in getattr(task.split, name).tolist()}
    for number in range(task.log.request.max() + 1):
        (rows,) = np.nonzero(task.log.request == number)
        [name] = {part[row] for row in rows.tolist()}
        yield rows, name


# (user, second, item, whether it is an event): a third is of the first second, so
# that many events come before any other; items are taken again, also in one second.
TAKINGS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(0, 29).map(lambda second: max(0, second - 9)),
        st.integers(0, 7),
        st.integers(0, 4).map(bool),
    ),
    min_size=15,
    max_size=50,
)


def columns(takings):
    in_time = sorted(takings, key=lambda taking: taking[1])
    return map(np.array, zip(*in_time, strict=True))


@settings(max_examples=60)
@given(
    takings=TAKINGS,
    train=st.integers(2, 4),
    test=st.integers(2, 6),
    draw=st.sampled_from(["popularity", "uniform"]),
    seed=st.integers(0, 2**16),
)
def test_one_item_of_each_request_was_taken_and_the_others_were_not_had(
    make_log, takings, train, test, draw, seed
):
    user, second, item, event = columns(takings)
    log = taking(make_log, user, second, item, 14, event=event)
    how = dict(train=train, test=test, draw=draw, seed=seed)
    (taken,) = np.nonzero(event)
    try:
        split = split_by_time(make_log(user[taken], second[taken]))
    except (ValueError, IndexError):
        with pytest.raises((ValueError, IndexError)):
            next_item(log, **how)
        return
    task = next_item(log, **how)
    new, found = task.log, list(requests(task))
    assert len(found) == len(taken)
    for (rows, part), origin in zip(found, taken, strict=True):
        assert (np.diff(rows) == 1).all()
        assert len(rows) == (test if part == "test" else train)
        assert new.event[rows].sum() == 1
        assert new.label[rows].tolist() == new.event[rows].tolist()
        [positive] = rows[new.event[rows]]
        for column in ("user", "item", "timestamp", "action"):
            assert getattr(new, column)[positive] == getattr(log, column)[origin]
        assert (new.user[rows] == user[origin]).all()
        assert (new.timestamp[rows] == second[origin]).all()
        others = new.item[rows[~new.event[rows]]].tolist()
        assert len(set(others)) == len(others)
        had = event & (user == user[origin]) & (second <= second[origin])
        assert not set(others) & set(item[had].tolist())
    for part in ("train", "validation", "test"):
        rows = getattr(task.split, part)
        assert (np.diff(rows) > 0).all()
        assert np.unique(new.request[rows]).tolist() == getattr(split, part).tolist()
    assert sum(len(rows) for rows, _ in found) == len(new)


@given(takings=TAKINGS, draw=st.sampled_from(["popularity", "uniform"]))
@settings(max_examples=30)
def test_histories_are_those_of_the_log(make_log, takings, draw):
    user, _, item, event = columns(3 * takings)
    # Two rows a second, of which one is an event at least: no part can be empty.
    second = np.arange(len(user)) // 2
    event |= second * 2 == np.arange(len(user))
    log = taking(make_log, user, second, item, 14, event=event)
    task, base = next_item(log, train=3, test=4, draw=draw), Histories.from_log(log)
    for name in ("item", "action", "timestamp"):
        assert getattr(task.histories, name).tolist() == getattr(base, name).tolist()
    origin = np.flatnonzero(event)[task.log.request]
    assert task.histories.start.tolist() == base.start[origin].tolist()
    assert task.histories.end.tolist() == base.end[origin].tolist()


def same(one, other):
    parts = ("train", "validation", "test")
    return all(
        np.array_equal(getattr(one.log, c), getattr(other.log, c)) for c in COLUMNS
    ) and all(
        np.array_equal(getattr(one.split, p), getattr(other.split, p)) for p in parts
    )


@pytest.mark.parametrize("draw", ["popularity", "uniform"])
def test_a_seed_decides_the_draws(world, draw):
    task = next_item(world, draw=draw, test=20, seed=3)
    assert same(task, next_item(world, draw=draw, test=20, seed=3))
    other = next_item(world, draw=draw, test=20, seed=4)
    assert (task.log.item != other.log.item).mean() > 0.5
    assert (task.log.event != other.log.event).any()


def test_a_request_has_as_many_items_as_its_part_asks_for(world):
    task = next_item(world)
    sizes = {
        name: np.unique(np.unique(task.log.request[rows], return_counts=True)[1])
        for name, rows in vars(task.split).items()
    }
    assert {name: s.tolist() for name, s in sizes.items()} == {
        "train": [5],
        "validation": [5],
        "test": [100],
    }
    assert task.name == "next item" and task.log.name == "planted world, next item"
    assert task.log.users is world.users and task.log.items is world.items


def test_items_drawn_by_popularity_were_taken_in_earlier_seconds(make_log):
    """Each of 200 users takes an item of their own, in a second of two of them."""
    n = 200
    log = taking(make_log, range(n), np.arange(n) // 2, range(n), n + 5)
    task = next_item(log, train=4, test=6)
    drawn = ~task.log.event
    second = np.append(log.timestamp, [10**6] * 5)[task.log.item]
    # Five draws of 50 rounds find all of 10 items or more; before, all may be drawn.
    late = task.log.timestamp >= 5
    assert (second < task.log.timestamp)[drawn & late].all()
    assert (second >= task.log.timestamp)[drawn & ~late].any()
    uniform = next_item(log, train=4, test=6, draw="uniform").log
    later = second_of_items(log, uniform) > uniform.timestamp
    assert later[~uniform.event].mean() > 0.3


def second_of_items(log, requests):
    return np.append(log.timestamp, [10**6] * 5)[requests.item]


def assert_shares(counts, chance, n):
    """Counts of n independent events each, to five standard deviations."""
    error = np.sqrt(n * chance * (1 - chance))
    assert (np.abs(counts - n * chance) <= 5 * error).all(), (counts, n * chance)


@pytest.mark.parametrize("others", [1, 2])
def test_popularity_draws_as_often_as_anybody_took(make_log, others):
    """Items 0 to 4 are taken 100, 200, ... times in the first second, by others. Then
    3,000 users take item 5, which none of them is offered, though it is popular.
    """
    first = np.repeat(np.arange(5), np.arange(1, 6) * 100)
    user = np.arange(len(first) + 3000)
    second = np.append(0 * first, np.arange(1, 3001))
    item = np.append(first, np.full(3000, 5))
    log = taking(make_log, user, second, item, 9)
    new = next_item(log, train=others + 1, test=others + 1, seed=1).log
    drawn = new.item[~new.event & (new.timestamp > 0)]
    counts = np.bincount(drawn, minlength=9)
    # Item 5 is 2 of 3 draws at most: 50 rounds miss all others once in 2^-29.
    assert counts[5:].tolist() == [0] * 4
    p = np.arange(1, 6) / 15
    if others == 2:  # first, or second after any other
        p = p + p * ((p / (1 - p)).sum() - p / (1 - p))
    assert_shares(counts[:5], p, 3000)


def test_uniform_draws_each_item_not_had_alike(make_log):
    """Each user has items 0 to 3, and then takes item 4, in a second of their own."""
    n = 1500
    user = np.append(np.repeat(np.arange(n), 4), np.arange(n))
    second = np.append(np.zeros(4 * n, int), np.arange(n) + 1)
    item = np.append(np.tile(np.arange(4), n), np.full(n, 4))
    log = taking(make_log, user, second, item, 12)
    new = next_item(log, train=3, test=3, draw="uniform", seed=2).log
    for when, least in ((new.timestamp == 0, 4), (new.timestamp > 0, 5)):
        counts = np.bincount(new.item[~new.event & when], minlength=12)
        assert counts[:least].tolist() == [0] * least
        left = 12 - least
        assert_shares(counts[least:], np.full(left, 2 / left), when.sum() // 3)


@pytest.mark.parametrize("draw", ["popularity", "uniform"])
def test_the_last_few_items_left_are_found_and_drawn_alike(make_log, draw):
    """A user with 1,197 of 1,200 items, taken in one second: each draw is of three."""
    n, left = 1197, 3
    user, second = np.append(np.zeros(n, int), np.ones(400, int)), np.zeros(n, int)
    second, item = np.append(second, np.arange(400) + 1), np.append(range(n), [0] * 400)
    log = taking(make_log, user, second, item, n + left)
    new = next_item(log, train=2, test=2, draw=draw).log
    counts = np.bincount(new.item[~new.event & (new.user == 0)], minlength=n + left)
    assert counts[:n].sum() == 0
    assert_shares(counts[n:], np.full(left, 1 / left), n)


def test_the_taken_item_stands_anywhere(make_log):
    n = 2000
    log = taking(make_log, range(n), range(n), np.arange(n) % 30, 60)
    task = next_item(log, train=4, test=7, draw="uniform")
    for rows, k in ((task.split.train, 4), (task.split.test, 7)):
        places = np.flatnonzero(task.log.event[rows]) % k
        assert_shares(
            np.bincount(places, minlength=k), np.full(k, 1 / k), len(rows) / k
        )


def test_an_item_taken_again_is_taken_and_not_drawn(make_log):
    """One user goes back and forth between two items."""
    log = taking(make_log, [0] * 40, range(40), [3, 5] * 20, 7)
    for draw in ("popularity", "uniform"):
        new = next_item(log, train=3, test=5, draw=draw).log
        assert new.item[new.event].tolist() == [3, 5] * 20
        others, second = new.item[~new.event], new.timestamp[~new.event]
        assert not (others == 3).any()
        assert set(second[others == 5].tolist()) <= {0}  # it is taken a second later


def test_rows_that_are_no_events_are_left_out(make_log):
    """Shown and passed over: neither taken, nor had, nor popular."""
    n = 300
    event = np.arange(3 * n) % 3 == 0
    item = np.where(event, np.arange(3 * n) % 4, 8 + np.arange(3 * n) % 2)
    log = taking(
        make_log,
        np.arange(3 * n) // 3,
        range(3 * n),
        item,
        10,
        event=event,
        request=np.arange(3 * n) // 3,
    )
    new = next_item(log, train=3, test=3).log
    assert new.request.max() + 1 == event.sum() == new.event.sum()
    assert new.item[new.event].tolist() == item[event].tolist()
    late = ~new.event & (new.timestamp > 20)
    assert late.any() and (new.item[late] < 4).all()  # nobody took 8 and 9
    uniform = next_item(log, train=9, test=9, draw="uniform").log
    assert {8, 9} <= set(uniform.item[uniform.timestamp > 20].tolist())


def test_a_catalogue_that_is_too_small_names_the_user(make_log):
    # User 1 comes to have 4 of 7 items at second 8; user 0 never has more than one.
    user, second = [0] * 6 + [1] * 4 + [0] * 10, range(20)
    item = [0] * 6 + [1, 2, 3, 4] + [0] * 10
    log = taking(make_log, user, second, item, 7, name="shop")
    for draw in ("popularity", "uniform"):
        task = next_item(log, train=4, test=4, draw=draw)
        assert len(task.log) == 80
        told = (
            r"^log 'shop': user u1 has had so many of the 7 items by 9 that not 4 "
            "others are left: ask for fewer candidates"
        )
        with pytest.raises(ValueError, match=told):
            next_item(log, train=5, test=5, draw=draw)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(train=1), "1 and 100 candidates: a request needs 2 or more"),
        (dict(test=0), "5 and 0 candidates: a request needs 2 or more"),
        (dict(draw="recent"), "draw is 'recent'; it must be 'popularity' or 'uniform'"),
    ],
)
def test_what_is_no_request_is_refused(world, how, message):
    with pytest.raises(ValueError, match=message):
        next_item(world, **how)


def test_a_log_without_events_and_one_of_a_second_are_refused(make_log):
    none = make_log([0] * 20, range(20), event=np.zeros(20, bool))
    with pytest.raises(ValueError, match=r"log 'toy': .*no (impression|event)"):
        next_item(none, train=2, test=2)
    with pytest.raises(ValueError, match="of one second"):
        next_item(make_log([0] * 20, [5] * 20), train=2, test=2)


def test_popularity_tells_what_was_taken_from_uniform_draws_alone(world):
    """Ranked by how often an item was taken before, where it was taken at all before:
    a taken item is then one more draw by popularity, but for what users have had.
    """
    times = np.bincount(world.item, minlength=world.n_items)

    def worth(draw):
        log = next_item(world, train=5, test=5, draw=draw).log
        found = by_request(log.label, times[log.item], log.request)
        assert found.skipped == 0 and (found.pairs == 4).all()
        return found.means().auc

    assert worth("uniform") > worth("popularity") + 0.1


def test_rating_is_the_log_split_by_time(world):
    task, split = rating(world), split_by_time(world)
    assert task.name == "rating" and task.log is world
    for name, rows in vars(split).items():
        assert getattr(task.split, name).tolist() == rows.tolist()
    base = Histories.from_log(world)
    for name, values in vars(base).items():
        assert getattr(task.histories, name).tolist() == values.tolist()
