"""Batches against plain loops over the log."""

import dataclasses
import itertools
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys_edu.batch import batches, impressions_at, pad_histories
from recsys_edu.data import Histories

# Few users and few seconds, so that ties and empty histories are the rule.
EVENTS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 6)), min_size=1, max_size=40
)
MAX_EVENTS = st.sampled_from([0, 1, 2, 5, 100])


def known_by_loop(log, row, max_events):
    """Rows of the user's strictly earlier events, the last `max_events` of them."""
    earlier = [
        other
        for other in range(len(log))
        if log.user[other] == log.user[row]
        and log.timestamp[other] < log.timestamp[row]
    ]
    return earlier[max(0, len(earlier) - max_events) :]


@given(EVENTS, MAX_EVENTS, st.randoms(use_true_random=False))
def test_impressions_equal_a_plain_loop(make_log, events, max_events, random):
    log = make_log(events)
    rows = np.array(random.choices(range(len(log)), k=random.randint(0, 50)), np.int64)
    batch = impressions_at(log, Histories.from_log(log), rows, max_events)
    request, history = batch.request, batch.request.history
    assert request.user.tolist() == log.user[rows].tolist()
    assert request.timestamp.tolist() == log.timestamp[rows, None].tolist()
    assert request.candidates.tolist() == log.item[rows, None].tolist()
    assert batch.label.tolist() == log.label[rows, None].tolist()
    known = [known_by_loop(log, row, max_events) for row in rows]
    N = max(map(len, known), default=0)
    assert history.mask.shape == (len(rows), N)
    for column in ("item", "action", "timestamp"):
        values = getattr(log, column)
        expected = [values[k].tolist() + [0] * (N - len(k)) for k in known]
        assert getattr(history, column).tolist() == expected
    expected = [[True] * len(k) + [False] * (N - len(k)) for k in known]
    assert history.mask.tolist() == expected


@given(EVENTS, st.integers(0, 7), MAX_EVENTS)
def test_what_happens_at_or_after_a_moment_changes_no_request_of_it(
    make_log, events, moment, max_events
):
    log = make_log(events)
    rows = np.flatnonzero(log.timestamp <= moment)
    later = log.timestamp >= moment
    changed = dataclasses.replace(log, action=np.where(later, 4, log.action))
    changed = dataclasses.replace(changed, item=np.where(later, 0, log.item))
    before, after = (
        impressions_at(log, Histories.from_log(log), rows, max_events).request
        for log in (log, changed)
    )
    seen = before.history.timestamp[before.history.mask]
    assert (seen < moment).all()
    assert torch.equal(before.history.item, after.history.item)
    assert torch.equal(before.history.action, after.history.action)


def test_types(make_log):
    log = make_log([(0, 0), (0, 1), (1, 1)])
    batch = impressions_at(log, Histories.from_log(log), np.array([1, 2]), 10)
    request, history = batch.request, batch.request.history
    integers = [request.user, request.timestamp, request.candidates]
    integers += [history.item, history.action, history.timestamp]
    assert {tensor.dtype for tensor in integers} == {torch.int64}
    assert history.mask.dtype == torch.bool
    assert batch.label.dtype == torch.float32


def test_a_batch_is_a_copy(make_log):
    log = make_log([(0, 0), (0, 1), (1, 1)])
    histories = Histories.from_log(log)
    untouched = impressions_at(log, histories, np.arange(3), 10)
    impressions_at(log, histories, np.arange(3), 10).map(lambda t: t.fill_(1))
    again = impressions_at(log, histories, np.arange(3), 10)
    assert torch.equal(again.request.history.item, untouched.request.history.item)
    assert torch.equal(again.request.candidates, untouched.request.candidates)
    assert torch.equal(again.label, untouched.label)


def test_histories_of_no_event_at_all():
    nothing = np.zeros(0, np.int64)
    histories = Histories(nothing, nothing, nothing, nothing, nothing)
    history = pad_histories(histories, np.zeros(2, np.int64), np.zeros(2, np.int64), 5)
    assert history.item.shape == history.mask.shape == (2, 0)


def test_a_negative_max_events_is_refused(make_log):
    log = make_log([(0, 0), (0, 1)])
    with pytest.raises(ValueError, match="max_events is -1; it must be 0 or more"):
        impressions_at(log, Histories.from_log(log), np.array([1]), -1)


def shown(log, rows, batch_size, generator=None):
    """The rows that each batch holds: row e of these logs shows item e."""
    parts = batches(
        log,
        Histories.from_log(log),
        rows,
        batch_size=batch_size,
        max_events=3,
        generator=generator,
    )
    return [part.request.candidates[:, 0].tolist() for part in parts]


@given(
    size=st.integers(0, 20), batch_size=st.integers(1, 25), seed=st.integers(0, 2**16)
)
def test_every_row_comes_once(make_log, size, batch_size, seed):
    log = make_log([(e % 3, e // 2) for e in range(20)])
    rows = np.random.default_rng(seed).permutation(20)[:size]
    in_order = shown(log, rows, batch_size)
    full, rest = divmod(size, batch_size)
    assert list(map(len, in_order)) == [batch_size] * full + [rest] * (rest > 0)
    assert list(chain(*in_order)) == rows.tolist()
    shuffled = shown(log, rows, batch_size, np.random.default_rng(seed))
    assert sorted(map(len, shuffled)) == sorted(map(len, in_order))
    assert sorted(chain(*shuffled)) == sorted(rows)
    assert shuffled == shown(log, rows, batch_size, np.random.default_rng(seed))


def test_a_generator_shuffles_anew_each_time(make_log):
    log = make_log([(e % 3, e // 2) for e in range(20)])
    rows, generator = np.arange(20), np.random.default_rng(0)
    once, again = (list(chain(*shown(log, rows, 6, generator))) for _ in range(2))
    assert once != again
    assert rows.tolist() not in (once, again)
    assert rows.tolist() == list(range(20))  # the caller's array is left alone


def test_a_batch_keeps_its_rows_together(make_log):
    """Labels, users and histories follow the shuffle."""
    log = make_log([(e % 3, e // 2) for e in range(20)])
    histories, generator = Histories.from_log(log), np.random.default_rng(0)
    for batch in batches(
        log,
        histories,
        np.arange(20),
        batch_size=7,
        max_events=4,
        generator=generator,
    ):
        rows = batch.request.candidates[:, 0].numpy()
        expected = impressions_at(log, histories, rows, 4)
        assert torch.equal(batch.label, expected.label)
        assert torch.equal(batch.request.user, expected.request.user)
        assert torch.equal(batch.request.history.item, expected.request.history.item)


def test_a_batch_moves_as_one(make_log):
    log = make_log([(0, 0), (0, 1), (1, 1)])
    batch = impressions_at(log, Histories.from_log(log), np.arange(3), 2).to("meta")
    places = []
    batch.map(lambda tensor: places.append(tensor.device.type) or tensor)
    assert places == ["meta"] * 9


# --- the rows of a request side by side ----------------------------------------------

# (user, second, request among the user's own, whether it is an event): requests are
# ragged, interleaved in time, and some go on in a later second.
SHOWN = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 2), st.booleans()),
    min_size=1,
    max_size=30,
)


def asked(make_log, shown):
    shown = sorted(shown, key=lambda row: row[1])
    user, second, number, event = map(np.array, zip(*shown, strict=True))
    log = make_log(list(zip(user, second, strict=True)))
    return dataclasses.replace(log, request=7 * user + number, event=event)


@given(
    shown=SHOWN,
    batch_size=st.integers(1, 6),
    max_events=MAX_EVENTS,
    seed=st.none() | st.integers(0, 9),
    random=st.randoms(use_true_random=False),
)
def test_rows_of_a_request_and_a_second_are_one_batch_row(
    make_log, shown, batch_size, max_events, seed, random
):
    log = asked(make_log, shown)
    count = random.randint(0, len(log))
    rows = np.array(random.sample(range(len(log)), count), np.int64)
    kept = rows.copy()
    histories, seen, runs, sizes = Histories.from_log(log), [], [], []
    widths = []
    for batch in batches(
        log,
        histories,
        rows,
        batch_size=batch_size,
        max_events=max_events,
        generator=None if seed is None else np.random.default_rng(seed),
    ):
        request, real = batch.request, batch.row >= 0
        sizes.append(len(batch.row))
        m = real.sum(1)
        widths.append((m.min().item(), m.max().item()))
        assert batch.row.shape[1] == m.max()  # as wide as it must be
        assert request.visible is None
        for b in range(len(batch.row)):
            own = batch.row[b][real[b]].numpy()
            assert real[b, : len(own)].all()
            runs.append((log.request[own[0]], log.timestamp[own[0]]))
            assert set(log.request[own]) == {runs[-1][0]}
            assert set(log.timestamp[own]) == {runs[-1][1]}
            assert request.timestamp[b].tolist() == [runs[-1][1]]
            assert (request.user[b] == log.user[own]).all()
            assert request.candidates[b][real[b]].tolist() == log.item[own].tolist()
            assert batch.label[b][real[b]].tolist() == log.label[own].tolist()
            known = known_by_loop(log, own[0], len(log))
            known = [row for row in known if log.event[row]]
            known = known[max(0, len(known) - max_events) :]
            mask = request.history.mask[b]
            for column in ("item", "action", "timestamp"):
                events = getattr(request.history, column)[b][mask]
                assert events.tolist() == getattr(log, column)[known].tolist()
            # A request's rows keep the order in which they were asked for.
            assert own.tolist() == [row for row in rows if row in own]
            seen.extend(own.tolist())
    assert sorted(seen) == sorted(rows.tolist())
    if max_events:  # no request and second is in two batch rows
        assert len(set(runs)) == len(runs)
    else:  # there is no history to share, and so no padding to pay
        assert len(runs) == count
    full, rest = divmod(len(runs), batch_size)
    if seed is not None:
        widths.sort()  # shuffled batches come in any order
        sizes.sort(reverse=True)
    assert sizes == [batch_size] * full + [rest] * (rest > 0)
    # Requests of like M share a batch: none is narrower than one of the batch before.
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(widths))
    assert rows.tolist() == kept.tolist()  # the caller's array is left alone


def test_a_generator_shuffles_requests_and_never_their_rows(make_log):
    log = make_log([(e // 4 % 2, e // 4) for e in range(80)])
    log = dataclasses.replace(log, request=np.arange(80) // 4)

    def run(generator):
        parts = batches(
            log, Histories.from_log(log), np.arange(80), batch_size=6,
            max_events=2, generator=generator,
        )  # fmt: skip
        return [row for part in parts for row in part.row.tolist()]

    plain, generator = run(None), np.random.default_rng(0)
    once, again = run(generator), run(generator)
    assert plain == np.arange(80).reshape(20, 4).tolist()
    assert once != plain and once != again
    assert sorted(once) == sorted(again) == plain
    assert run(np.random.default_rng(0)) == once


def test_a_log_without_requests_is_one_row_each_in_the_order_asked_for(make_log):
    log = make_log([(0, 0)] * 5 + [(1, 0)] * 5)
    rows = np.array([7, 2, 2, 9, 0])
    [batch] = batches(log, Histories.from_log(log), rows, batch_size=9, max_events=1)
    assert batch.row.tolist() == rows[:, None].tolist()


NAMES = ["naive", "mean pooling", "DIN", "concat", "append-self", "append-cross"]
NAMES += ["append-cross, causal", "HSTU", "LIME-MHA", "LIME-XOR", "two-tower"]


@pytest.fixture(scope="module")
def feed(world):
    """The world's log in 60 seconds: a user's rows of one are a request, 1 to 12."""
    log = world.log
    rank = np.arange(len(log)) * 60 // len(log)
    _, request = np.unique(log.user * 60 + rank, return_inverse=True)
    log = dataclasses.replace(
        log,
        timestamp=log.timestamp[0] + 90_000 * rank,
        request=np.random.default_rng(0).permutation(request.max() + 1)[request],
    )
    return log, Histories.from_log(log)


def some_requests(log):
    """Rows of 4 requests of 1 to 5 rows or more, in no order."""
    count = np.bincount(log.request)
    late = np.bincount(log.request, log.timestamp) / count > np.median(log.timestamp)
    chosen = [np.flatnonzero((count == size) & late)[0] for size in (1, 2, 3, 5)]
    rows = np.flatnonzero(np.isin(log.request, chosen))
    return np.random.default_rng(1).permutation(rows)


@pytest.mark.parametrize("size", [0, 1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_scores_side_by_side_are_those_one_by_one(
    feed, ranker, assert_same, name, size
):
    log, histories = feed
    rows = some_requests(log)

    def form(model):
        scores = torch.full((len(log),), torch.nan, dtype=torch.float64)
        parts = batches(log, histories, rows, batch_size=3, max_events=9)
        shapes = []
        for batch in parts:
            real = batch.row >= 0
            shapes.append(real.all())
            scores[batch.row[real]] = model(batch.request)[real].double()
        assert not all(shapes)  # some candidates are padding
        return scores[rows]

    def one_by_one(model):
        each = [impressions_at(log, histories, row, 9) for row in rows[:, None]]
        return torch.cat([model(one.request)[0] for one in each]).double()

    assert_same(form, one_by_one, ranker(name, size))
