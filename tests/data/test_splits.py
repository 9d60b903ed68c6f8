"""Splits of a log: partitions, in time or at random, and what is refused before."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recsys_edu.data import split_at_random, split_by_time


@given(
    timestamps=hnp.arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 30)),
    shares=st.tuples(*[st.integers(1, 8)] * 3),
)
def test_split_by_time_is_a_partition_that_cuts_no_second(make_log, timestamps, shares):
    timestamps = np.sort(timestamps)
    log = make_log([0] * len(timestamps), timestamps)
    fractions = np.array(shares) / sum(shares)
    try:
        split = split_by_time(log, fractions)
    except ValueError as error:
        assert "empty" in str(error) or "of one second" in str(error)
        return
    parts = [timestamps[split.train], timestamps[split.validation]]
    parts.append(timestamps[split.test])
    rows = np.concatenate([split.train, split.validation, split.test])
    assert rows.tolist() == list(range(len(log)))
    assert parts[0][-1] < parts[1][0] and parts[1][-1] < parts[2][0]


def test_split_by_time_gives_the_fractions_where_no_second_is_shared(make_log):
    split = split_by_time(make_log([0] * 100, range(100)))
    sizes = [len(split.train), len(split.validation), len(split.test)]
    assert sizes == [80, 10, 10]


def test_a_border_moves_back_to_the_start_of_its_second(make_log):
    seconds = [*range(7), 7, 7, 7, *range(8, 18)]  # row 8 of 20 is the border
    split = split_by_time(make_log([0] * 20, seconds), (0.4, 0.3, 0.3))
    assert len(split.train) == 7


@given(st.integers(10, 200), st.integers(0, 2**32))
def test_split_at_random_is_a_partition_in_time_order(make_log, size, seed):
    log = make_log([0] * size, range(size))
    split, again = split_at_random(log, seed=seed), split_at_random(log, seed=seed)
    parts = [split.train, split.validation, split.test]
    assert sorted(np.concatenate(parts)) == list(range(size))
    assert all((np.diff(part) > 0).all() for part in parts)
    assert np.array_equal(split.test, again.test)


def test_split_at_random_trains_on_the_test_future(make_log):
    split = split_at_random(make_log([0] * 1000, range(1000)), seed=0)
    assert split.train.max() > split.test.min()


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ((0.8, 0.1, 0.2), "add to 1"),
        ((1.2, -0.1, -0.1), "add to 1"),
        ((0.5, 0.5), "add to 1"),
        ((0.9, 0.1, 0.0), r"\['test'\] empty"),
    ],
)
def test_bad_fractions_are_refused(make_log, fractions, message):
    log = make_log([0] * 100, range(100))
    with pytest.raises(ValueError, match=message):
        split_by_time(log, fractions)
    with pytest.raises(ValueError, match=message):
        split_at_random(log, fractions, seed=0)


def test_a_log_of_one_second_cannot_be_split_by_time(make_log):
    log = make_log([0] * 100, [7] * 100)
    with pytest.raises(ValueError, match=r"of one second, .*: use split_at_random"):
        split_by_time(log)
    assert len(split_at_random(log, seed=0).train) == 80
