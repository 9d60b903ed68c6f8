"""When an event happened: rows by hand, padding, and what a new event changes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_edu.batch import History
from recsys_edu.positions import Absolute, Recency, TimeGap

D = 4
HALF_A_YEAR = 2**24 - 1  # seconds
SCHEMES = {
    "absolute": lambda: Absolute(30, D),
    "recency": lambda: Recency(30, D),
    "time gap": lambda: TimeGap(D),
}
every_scheme = pytest.mark.parametrize("name", SCHEMES)
few = settings(max_examples=20, deadline=None)


def history(timestamps, mask=None):
    seconds = torch.tensor(timestamps).reshape(1, -1)
    mask = torch.ones_like(seconds) if mask is None else torch.tensor([mask])
    return History(0 * seconds, 0 * seconds, seconds, mask.bool())


# Events 0, 1, 8 and 8 seconds after the first; gaps are 1, 7 and 0 seconds.
BY_HAND = {
    "absolute": [0, 1, 2, 3],
    "recency": [3, 2, 1, 0],
    "time gap": [0, 2, 4, 1],
}


@every_scheme
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_rows_by_hand(name, padding):
    """What stands under padding is no event: an older one, say, or one to come."""
    for under in (7, 5000):
        seconds = [100, 101, 108, 108] + [under] * padding
        rows = SCHEMES[name]().row(history(seconds, [1] * 4 + [0] * padding))
        assert rows.tolist() == [BY_HAND[name] + [0] * padding]


@pytest.mark.parametrize("n", [1, 5, 16])  # odd ends of vectorised loops
def test_a_gap_moves_to_the_next_row_at_each_power_of_two(n):
    for k in range(1, 40):
        for gap, row in ((2**k - 2, k), (2**k - 1, k + 1)):
            rows = TimeGap(D).row(history([gap * i for i in range(n + 1)]))
            assert rows.tolist() == [[0] + n * [min(row, 25)]], (k, gap)


def test_the_last_row_of_time_gaps_begins_at_half_a_year():
    rows = TimeGap(D).row(history([0, HALF_A_YEAR - 1, 2 * HALF_A_YEAR - 1, 2**60]))
    assert rows.tolist() == [[0, 24, 25, 25]]
    assert TimeGap(D).table.num_embeddings == 26


@every_scheme
def test_what_is_added_is_the_row_of_the_table(name):
    scheme, events = SCHEMES[name](), history([1, 2, 9])
    assert torch.equal(scheme(events), scheme.table.weight[scheme.row(events)])


@every_scheme
@pytest.mark.parametrize("b, n", [(2, 0), (0, 3)])
def test_no_event_and_no_history_are_valid(name, b, n):
    zeros = torch.zeros(b, n).long()
    vectors = SCHEMES[name]()(History(zeros, zeros, zeros, zeros.bool()))
    assert vectors.shape == (b, n, D)


@every_scheme
@few
@given(seed=st.integers(0, 999), n=st.integers(1, 8), new=st.integers(1, 3))
def test_append_only_says_whether_a_new_event_leaves_the_old_rows(name, seed, n, new):
    rng = np.random.default_rng(seed)
    seconds = np.sort(rng.integers(0, 2**25, n + new)).tolist()
    scheme = SCHEMES[name]()
    before, after = scheme.row(history(seconds[:n])), scheme.row(history(seconds))
    assert torch.equal(before, after[:, :n]) == scheme.append_only


@every_scheme
@few
@given(seed=st.integers(0, 999), n=st.integers(0, 8))
def test_padding_moves_no_row(draw_history, name, seed, n):
    drawn = draw_history(np.random.default_rng(seed), 3, n)
    scheme = SCHEMES[name]()
    rows = scheme.row(drawn)
    assert (rows[~drawn.mask] == 0).all()
    for b in range(3):
        alone = drawn[b : b + 1].map(lambda t, b=b: t[:, drawn.mask[b]])
        assert torch.equal(rows[b, drawn.mask[b]], scheme.row(alone)[0])


@pytest.mark.parametrize("scheme", [Absolute, Recency])
def test_a_history_longer_than_the_table_is_refused(scheme):
    """By its shape: a batch is no wider than its longest history."""
    scheme(3, D)(history([1, 2, 3]))
    expected = f"{scheme.__name__} has 3 rows, too few for a history of 4 events"
    for mask in ([1, 1, 1, 1], [1, 0, 0, 0]):
        with pytest.raises(ValueError, match=expected):
            scheme(3, D)(history([1, 2, 3, 4], mask))


def test_time_gaps_have_a_row_for_any_history():
    assert TimeGap(D)(history(range(0, 90 * 500, 90))).shape == (1, 500, D)


@every_scheme
def test_positions_look_at_no_number_to_decide_what_to_do(name):
    """On a GPU it would wait for the number; on the meta device there is none."""
    empty = torch.zeros(2, 5, dtype=torch.int64, device="meta")
    scheme = SCHEMES[name]().to("meta")
    assert scheme(History(empty, empty, empty, empty.bool())).shape == (2, 5, D)


@pytest.mark.parametrize("positions", ["none", *SCHEMES])
@few
@given(seed=st.integers(0, 99), n=st.integers(0, 6), since=st.integers(0, 6))
def test_events_since_are_the_last_of_all_events(
    ranker, draw_request, positions, seed, n, since
):
    embeddings = ranker("mean pooling", positions=positions).float32.embeddings
    drawn = draw_request(seed, b=2, n=n, m=1).history
    since = min(since, n)
    some, whole = embeddings.events(drawn, since=since), embeddings.events(drawn)
    assert some.shape == (2, n - since, 8)
    assert torch.equal(some, whole[:, since:])


@every_scheme
def test_an_event_is_its_item_its_action_and_its_when(ranker, draw_request, name):
    embeddings = ranker("mean pooling", positions=name).float32.embeddings
    drawn = draw_request(3, b=2, n=5, m=1).history
    expected = embeddings.items(drawn.item).sum(-2)
    expected = expected + embeddings.actions(1 + drawn.action)
    expected = expected + embeddings.positions(drawn)
    assert torch.equal(embeddings.events(drawn), expected)
