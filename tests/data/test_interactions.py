"""The log, its splits and its histories, against plain loops."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_edu.batch import user_batches
from recsys_edu.data import (
    Features,
    Histories,
    InteractionLog,
    earlier_events,
    sittings,
)

# Few users and few seconds, so that ties and repeats are the rule.
EVENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=40)


def columns(events):
    user = np.array([user for user, _ in events], dtype=np.int64)
    return user, np.array([time for _, time in events], dtype=np.int64)


def history_by_loop(user, timestamp, row, event=None):
    """Rows of the user's strictly earlier events, oldest first, ties in row order."""
    earlier = [
        other
        for other in range(len(user))
        if user[other] == user[row] and timestamp[other] < timestamp[row]
        if event is None or event[other]
    ]
    return sorted(earlier, key=lambda other: (timestamp[other], other))


@given(EVENTS)
def test_earlier_events_equal_a_plain_loop(events):
    user, timestamp = columns(events)
    order, start, end = earlier_events(user, timestamp)
    assert sorted(order) == list(range(len(events)))
    for row in range(len(events)):
        history = order[start[row] : end[row]].tolist()
        assert history == history_by_loop(user, timestamp, row)


@given(EVENTS.filter(len))
def test_histories_carry_item_action_and_time(make_log, events):
    user, timestamp = columns(sorted(events, key=lambda event: event[1]))
    log = make_log(user, timestamp)
    histories = Histories.from_log(log)
    for row in range(len(log)):
        expected = history_by_loop(user, timestamp, row)
        window = slice(histories.start[row], histories.end[row])
        assert histories.item[window].tolist() == log.item[expected].tolist()
        assert histories.action[window].tolist() == log.action[expected].tolist()
        assert histories.timestamp[window].tolist() == timestamp[expected].tolist()
        assert histories.lengths(np.array([row])) == [len(expected)]


# user, second, and whether the row is an event
ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 5), st.booleans()),
    min_size=1,
    max_size=40,
)


@given(ROWS)
def test_histories_hold_events_only_and_every_row_has_one(make_log, rows):
    user, timestamp, event = np.array(sorted(rows, key=lambda row: row[1])).T
    event = event.astype(bool)
    order, start, end = earlier_events(user, timestamp, event)
    assert sorted(order) == np.flatnonzero(event).tolist()
    log = make_log(user, timestamp, event=event)
    histories = Histories.from_log(log)
    for row in range(len(log)):
        expected = history_by_loop(user, timestamp, row, event)
        window = slice(histories.start[row], histories.end[row])
        assert order[start[row] : end[row]].tolist() == expected
        assert histories.item[window].tolist() == log.item[expected].tolist()
        assert histories.action[window].tolist() == log.action[expected].tolist()
        assert histories.timestamp[window].tolist() == timestamp[expected].tolist()


@given(ROWS, st.integers(1, 4), st.integers(0, 3))
def test_amortized_batches_show_each_row_its_events(
    make_log, rows, max_candidates, max_events
):
    user, timestamp, event = np.array(sorted(rows, key=lambda row: row[1])).T
    event = event.astype(bool)
    log = make_log(user, timestamp, event=event, item=np.arange(len(user)) % 7)
    all_rows = np.arange(len(log))
    seen = []
    for batch in user_batches(
        log,
        Histories.from_log(log),
        all_rows,
        max_tokens=30,
        max_events=max_events,
        max_candidates=max_candidates,
    ):
        request = batch.request
        for b, m in zip(*np.nonzero(batch.row.numpy() >= 0), strict=True):
            row, reads = int(batch.row[b, m]), int(request.visible[b, m])
            expected = log.item[history_by_loop(user, timestamp, row, event)]
            kept = min(len(expected), max_events)  # or more, of the run's own events
            assert kept <= reads <= len(expected)
            read = request.history.item[b, :reads].tolist()
            assert read == expected[len(expected) - reads :].tolist()
            seen.append(row)
    assert sorted(seen) == all_rows.tolist()


def test_a_log_without_a_single_event_has_empty_histories(make_log):
    log = make_log([0, 0, 1], [1, 2, 3], event=np.zeros(3, dtype=bool))
    histories = Histories.from_log(log)
    assert len(histories.item) == 0
    assert histories.lengths(np.arange(3)).tolist() == [0, 0, 0]


def test_a_first_event_and_its_ties_have_an_empty_history(make_log):
    histories = Histories.from_log(make_log([0, 0, 1, 0], [5, 5, 5, 6]))
    assert histories.lengths(np.arange(4)).tolist() == [0, 0, 0, 2]


def test_histories_store_each_event_once(make_log):
    log = make_log([0] * 1000, range(1000))
    for field in dataclasses.fields(Histories):
        assert getattr(Histories.from_log(log), field.name).shape == (1000,)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": np.array([0, 1, 2])}, "column 'user', row 2: 2 is outside 0..1"),
        ({"user": np.array([0, -1, 1])}, "column 'user', row 1: -1"),
        ({"item": np.array([0, 7, 1])}, "column 'item', row 1: 7 is outside 0..6"),
        ({"action": np.array([5, 0, 0])}, "column 'action', row 0: 5"),
        ({"timestamp": np.array([1, 3, 2])}, "column 'timestamp', row 2: 2 is earlier"),
        ({"timestamp": np.array([-1, 3, 4])}, "column 'timestamp', row 0: -1"),
        (
            {"timestamp": np.array([1, 2, 881250949000])},
            "column 'timestamp', row 2: 881250949000 is outside",
        ),
        ({"label": np.float32([0, 1, np.nan])}, "column 'label', row 2: nan"),
        ({"label": np.float32([0, 0.5, 1])}, "column 'label', row 1: 0.5"),
        ({"label": np.array([0, 1, 1])}, "column 'label' is int64"),
        ({"item": np.array([1, 2])}, "'item' is int64 .2., expected int64 with 3 rows"),
        ({"item": np.array([1, 2, 3], np.int32)}, "column 'item' is int32"),
        ({"item_titles": np.array(["a"])}, "item_titles has shape"),
        ({"request": np.array([4, 4, 4])}, "'request', row 1: 4 is a request of anoth"),
        ({"request": np.array([0, -1, 1])}, "column 'request', row 1: -1 is negative"),
        ({"request": np.array([0, 1])}, "column 'request' is int64 .2."),
        ({"request": np.array([0.0, 1, 2])}, "column 'request' is float64"),
        ({"event": np.array([0, 1, 1])}, "column 'event' is int64 .3., expected bool"),
        ({"event": np.array([True])}, "column 'event' is bool .1., .* with 3 rows"),
    ],
)
def test_a_bad_column_is_named_with_its_row(make_log, columns, message):
    with pytest.raises(ValueError, match=message) as error:
        make_log([0, 1, 1], [1, 2, 2], **columns)
    assert "log 'toy'" in str(error.value)


def test_an_empty_log_is_refused(make_log):
    with pytest.raises(ValueError, match="no impression"):
        make_log([], [])


def test_unsorted_and_duplicate_rows_are_sorted_stably_and_kept(make_log):
    log = make_log([0, 0, 0, 1, 1], [1, 2, 2, 3, 4])
    values = {field.name: getattr(log, field.name) for field in dataclasses.fields(log)}
    values |= dict(
        timestamp=np.array([9, 4, 9, 4, 9]),
        user=np.array([0, 1, 1, 1, 0]),
        item=np.array([3, 2, 2, 2, 3]),
        action=np.arange(5),
        request=np.array([1, 7, 7, 5, 1]),
        event=np.array([True, False, True, True, False]),
    )
    log = InteractionLog.from_unsorted(**values)
    assert log.request.tolist() == [7, 5, 1, 7, 1]
    assert log.event.tolist() == [False, True, True, True, False]
    assert log.timestamp.tolist() == [4, 4, 9, 9, 9]
    assert log.action.tolist() == [1, 3, 0, 2, 4]
    assert log.item.tolist() == [2, 2, 3, 2, 3]


def test_a_long_run_of_one_second_keeps_its_order(make_log):
    log = make_log([0] * 1000, [5] * 1000)  # short arrays are sorted stably by any sort
    values = {field.name: getattr(log, field.name) for field in dataclasses.fields(log)}
    values |= dict(action=np.arange(1000), actions=tuple(range(1000)))
    values["timestamp"] = np.tile([6, 5], 500)
    log = InteractionLog.from_unsorted(**values)
    assert log.action.tolist() == [*range(1, 1000, 2), *range(0, 1000, 2)]


def test_ids_become_indices_and_unknown_ones_are_named(make_log):
    log = make_log([0, 1, 2], [1, 2, 3])
    assert log.user_index(["u2", "u0", "u2"]).tolist() == [2, 0, 2]
    assert log.item_index([106, 100]).tolist() == [6, 0]
    with pytest.raises(KeyError, match=r"user id in toy: \['u9', 'u8'\]"):
        log.user_index(["u9", "u1", "u8"])
    with pytest.raises(KeyError, match=r"item id in toy: \['100'\]"):
        log.item_index(["100"])


def test_features_without_some(make_log):
    users = make_log([0, 1, 2, 3], [1, 2, 3, 4]).users
    fewer = users.without("kind", "weight")
    assert list(fewer.sparse) == ["user_id"] == list(fewer.cardinality)
    assert fewer.dense.shape == (4, 0) and len(fewer) == 4
    assert list(fewer.coding.sparse) == ["user_id"] and not fewer.coding.dense
    assert fewer.ids is users.ids
    with pytest.raises(KeyError, match=r"no feature \['size'\].*weight.*kind"):
        users.without("size")


def test_dense_features_are_standardised_and_gaps_become_the_mean():
    dense = {"price": np.array([1.0, np.nan, 3.0]), "same": np.full(3, 2.0)}
    features = Features.fit([4, 5, 6], dense, {"item_id": [4, 5, 6]})
    assert features.dense.tolist() == [[-1, 0], [0, 0], [1, 0]]
    assert features.cardinality == {"item_id": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dense": np.float32([[1.0], [np.inf]])}, "column 'age', row 1: inf"),
        ({"dense": np.zeros((2, 1))}, "column 'age' is float64"),
        ({"dense": np.zeros((2, 2), np.float32)}, "1 dense names"),
        ({"sparse": {"bag": np.array([[1, 0], [0, 3]])}}, "column 'bag', row 1"),
        ({"sparse": {"bag": np.array([0, -1])}}, "'bag', row 1: -1 is outside 0..2"),
        ({"sparse": {"bag": np.array([0])}}, "column 'bag' is int64"),
        ({"sparse": {}}, "cardinality has"),
        ({"dense_names": ("bag",)}, "appears twice"),
        ({"ids": np.array(["a"])}, "ids has shape"),
        ({"ids": np.array([1, 1])}, "ids holds the same id twice"),
        ({"ids": np.array([1.0, 2.0])}, "ids are float64"),
    ],
)
def test_bad_features_are_named(change, message):
    good = dict(
        dense=np.zeros((2, 1), np.float32),
        dense_names=("age",),
        sparse={"bag": np.array([[1, 2], [0, 0]])},
        cardinality={"bag": 3},
    )
    Features(**good)
    with pytest.raises(ValueError, match=message):
        Features(**good | change)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60)), min_size=1))
def test_a_sitting_is_a_run_without_a_long_pause(rows):
    user, timestamp = np.array(rows).T
    number = sittings(user, timestamp, gap=5)
    for a in range(len(rows)):
        for b in range(len(rows)):
            apart = user[a] != user[b]
            low, high = sorted((timestamp[a], timestamp[b]))
            between = timestamp[(user == user[a]) & (timestamp >= low)]
            stops = np.sort(between[between <= high])
            together = not apart and (np.diff(stops) <= 5).all()
            assert (number[a] == number[b]) == together
