"""The door: what comes in, what is refused, and that each refusal names its row."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys_edu.data import Features
from recsys_edu.door import checked
from recsys_edu.values import Values

NOW = 3 * 86_400
HISTORY = dict(items=[4, 5, 6], actions=[1, 0, 1], times=[10, 20, 20])


@pytest.fixture(scope="module")
def model(ranker):
    """A ranker of the planted world: users 0..11, items 0..29, actions 0 and 1."""
    return ranker("append-cross, causal").float32


def test_one_user_is_a_batch_of_one(model):
    request = model.request(3, [7, 8], now=NOW, **HISTORY)
    assert request.user.tolist() == [3] and request.timestamp.tolist() == [[NOW]]
    assert request.candidates.tolist() == [[7, 8]] and request.shown is None
    assert request.history.item.tolist() == [[4, 5, 6]]
    assert request.history.action.tolist() == [[1, 0, 1]]
    assert request.history.timestamp.tolist() == [[10, 20, 20]]
    assert model(request).shape == (1, 2)


def test_a_user_may_have_no_history_and_no_candidate(model):
    request = model.request(3, [], now=NOW)
    assert request.candidates.shape == (1, 0) and request.history.item.shape == (1, 0)
    assert model(request).shape == (1, 0)


@torch.no_grad()
def test_requests_of_different_lengths_share_a_batch(model):
    """Scores are those of each alone; where nothing is shown they are -inf."""
    rows = [
        dict(user=3, candidates=[7, 8, 9], now=NOW, **HISTORY),
        dict(user=4, candidates=[1], now=NOW + 1, items=[2], actions=[0], times=[5]),
        dict(user=5, candidates=[3, 2], now=NOW + 2, items=[], actions=[], times=[]),
    ]
    batch = model.request(**{key: [row[key] for row in rows] for key in rows[0]})
    assert batch.shown.sum(1).tolist() == [3, 1, 2]
    alone = [model.request(**row) for row in rows]
    stacked = type(batch).stack(alone)
    for form in (batch, stacked):
        scores = model(form)
        for row, one in enumerate(alone):
            m = one.candidates.shape[1]
            torch.testing.assert_close(scores[row, :m], model(one)[0])
            assert (scores[row, m:] == -torch.inf).all()


def test_unknown_ids_are_told_taken_or_left_out(model):
    unknown = dict(user=3, candidates=[7, 99, 8], now=NOW)
    history = dict(items=[4, 77, 6], actions=[1, 5, 0], times=[1, 2, 3])
    with pytest.raises(KeyError, match=r"candidates, row 0: .* \[99\]"):
        model.request(**unknown)
    with pytest.raises(KeyError, match=r"items, row 0: .* \[77\]"):
        model.request(3, [7], now=NOW, **history)
    with pytest.raises(KeyError, match=r"actions, row 0: .* 5; it knows \[0, 1\]"):
        model.request(3, [7], now=NOW, **history | dict(items=[4, 5, 6]))
    with pytest.raises(KeyError, match=r"users, row 0: .* \[500\]"):
        model.request(500, [7], now=NOW)
    with pytest.raises(KeyError, match=r"candidates, row 1: .* \[98\]"):
        model.request([3, 4], [[7], [8, 98]], now=[NOW, NOW])

    taken = model.request(**unknown, **history, unknown="unknown")
    assert taken.candidates.tolist() == [[7, -1, 8]] and taken.shown is None
    assert taken.history.item.tolist() == [[4, -1, 6]]
    assert taken.history.action.tolist() == [[1, -1, 0]]
    assert model(taken).isfinite().all()

    masked = model.request(**unknown, **history, unknown="mask")
    assert masked.shown.tolist() == [[True, False, True]]
    assert masked.history.item[masked.history.mask].tolist() == [4, 6]
    with torch.no_grad():
        scores = model(masked)[0].tolist()
        history = {name: [v[0], v[2]] for name, v in history.items()}
        alone = model(model.request(3, [7, 8], now=NOW, **history))[0].tolist()
    assert scores[1] == -np.inf and np.allclose([scores[0], scores[2]], alone)


def test_more_masked_than_shown_is_another_catalogue(model):
    with pytest.raises(ValueError, match="row 1: 2 of 3 candidates are unknown"):
        model.request([3, 4], [[7, 99], [97, 98, 8]], now=[NOW, NOW], unknown="mask")


REFUSED = {
    "newest first": (dict(times=[30, 20, 10]), "row 0: event 1 .* newest first: rev"),
    "out of order": (dict(times=[10, 30, 20]), "row 0: event 2 .* sort the history"),
    "at the request": (dict(times=[1, 2, NOW]), "row 0: event 2 .* at or after the"),
    "milliseconds": (dict(now=875_000_000_000), "now, row 0: 8750+ is after the year"),
    "one action less": (dict(actions=[1, 0]), "row 0: 2 actions for a .* 3 items"),
    "no times": (dict(times=[]), "row 0: 0 times for a history of 3 items"),
    "floats for times": (dict(times=[1.0, 2.0, 3.0]), "times, row 0: .* is float64"),
    "a date for now": (dict(now=np.datetime64("2026-01-01")), "now: .* a time is"),
    "text for ids": (dict(candidates=["7"]), "candidates: ids such as '7' are <U1"),
    "floats for ids": (dict(candidates=[7.0]), "candidates: ids such as 7.0 are float"),
    "a list too deep": (dict(candidates=[[7]]), "candidates, row 0: .* is not a list"),
    "a policy": (dict(unknown="drop"), "unknown is 'drop'"),
}


@pytest.mark.parametrize("change, message", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_request_is_refused_by_row(model, change, message):
    good = dict(user=3, candidates=[7], now=NOW, **HISTORY)
    model.request(**good)
    with pytest.raises(ValueError, match=message):
        model.request(**good | change)


def test_rows_that_do_not_match_users_are_counted(model):
    with pytest.raises(ValueError, match="candidates has 1 rows for 2 users"):
        model.request([3, 4], [[7]], now=[NOW, NOW])
    with pytest.raises(ValueError, match="now has 3 rows for 2 users"):
        model.request([3, 4], [[7], [8]], now=[NOW] * 3)


def test_times_in_another_unit_than_the_log_s_are_refused(model):
    """The log of 1997 in seconds, the request in thousands of seconds, or in days."""
    embeddings = model.embeddings
    coding = replace(embeddings.coding, first=875_000_000, last=893_000_000)
    embeddings.coding, before = coding, embeddings.coding
    try:
        model.request(3, [7], now=890_000_000)
        for now in (890_000, 10_300):
            with pytest.raises(ValueError, match="ten years before the ranker's log"):
                model.request(3, [7], now=now)
        with pytest.raises(ValueError, match="times, row 0: 10 lies more than ten"):
            model.request(3, [7], now=890_000_000, **HISTORY)
    finally:
        embeddings.coding = before


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(user=[-2]), "row 0: user -2 is nobody's index"),
        (dict(user=[12]), "row 0: user 12 is nobody's index: they are 0..11"),
        (dict(candidates=[[1, -7]]), "row 0: candidates -7"),
        (dict(candidates=[[30, 1]]), "row 0: candidates 30"),
        (dict(item=[[1, 30]]), "row 0: history.item 30"),
        (dict(action=[[0, 2]]), "row 0: history.action 2"),
    ],
)
def test_an_index_of_nobody_is_named(model, change, message):
    good = dict(user=[0], candidates=[[1, 2]], item=[[1, 2]], action=[[0, 1]])

    def check(user, candidates, item, action):
        request = model.request(0, [0, 0], now=NOW, items=[0, 0], actions=[0, 0],
                                times=[1, 2])  # fmt: skip
        history = replace(
            request.history, item=torch.tensor(item), action=torch.tensor(action)
        )
        indices = dict(user=torch.tensor(user), candidates=torch.tensor(candidates))
        return checked(model.embeddings, replace(request, history=history, **indices))

    check(**good)
    with pytest.raises(ValueError, match=message):
        check(**good | change)


def test_padding_may_hold_anything(model):
    request = model.request(
        [3, 4], [[7, 8], [9]], now=[NOW] * 2, items=[[4], []], actions=[[1], []],
        times=[[5], []],
    )  # fmt: skip
    garbage = torch.tensor(10**9)
    history = request.history.map(
        lambda t: t if t.dtype == torch.bool else t.where(request.history.mask, garbage)
    )
    candidates = request.candidates.where(request.shown, garbage)
    checked(model.embeddings, replace(request, history=history, candidates=candidates))


def test_what_a_stacked_request_does_not_show_stays_hidden(model):
    one = model.request(3, [7, 99, 8], now=NOW, unknown="mask")
    two = model.request(4, [1, 2, 3, 4], now=NOW)
    stacked = type(one).stack([one, two])
    assert stacked.shown.tolist() == [[True, False, True, False], [True] * 4]


def test_padding_before_the_events_is_put_behind_them(model, draw_request):
    request = draw_request(0, 5, 6, 2, side="left")
    ended = checked(model.embeddings, request)
    n = request.history.mask.sum(1)
    assert torch.equal(ended.history.mask, torch.arange(6) < n[:, None])
    for name in ("item", "action", "timestamp"):
        before, after = getattr(request.history, name), getattr(ended.history, name)
        kept = before[request.history.mask]
        assert torch.equal(after[ended.history.mask], kept)


def test_a_thousand_ids_among_a_million_are_found_within_a_millisecond():
    """By count: one step an id, whatever the catalogue. The time is looked at too."""
    million = np.random.default_rng(0).permutation(10**6) + 10**12
    values = Values(Features(np.zeros((10**6, 0), np.float32), (), {}, {}, million))
    wanted = million[::1000]
    expected = np.arange(0, 10**6, 1000)
    assert np.array_equal(values.index(wanted), expected)  # builds the look-up
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        values.index(wanted)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1e-3


SHAPES = {
    "candidates [B]": (dict(candidates=torch.tensor([1])), r"candidates \[1\]"),
    "a user less": (
        dict(user=torch.tensor([1, 2])),
        r"user is \[2\]: it must",
    ),
    "timestamp [B]": (dict(timestamp=torch.tensor([1])), r"timestamp is \[1\]"),
    "shown of another M": (dict(shown=torch.ones(1, 3).bool()), r"shown is \[1, 3\]"),
    "visible of another M": (dict(visible=torch.ones(1, 3)), r"visible is \[1, 3\]"),
    "floats": (
        dict(candidates=torch.tensor([[1.0, 2.0]])),
        "candidates is torch.float",
    ),
}


@pytest.mark.parametrize("change, message", SHAPES.values(), ids=SHAPES.keys())
def test_a_shape_that_would_broadcast_is_refused(model, change, message):
    request = model.request(3, [7, 8], now=NOW, **HISTORY)
    with pytest.raises(ValueError, match=message):
        replace(request, **change)


def test_two_histories_for_one_user_are_refused(model):
    request = model.request(3, [7, 8], now=NOW, **HISTORY)
    double = request.history.map(lambda t: torch.cat([t, t]))
    with pytest.raises(ValueError, match=r"history\.item is \[2, 3\]"):
        replace(request, history=double)
    with pytest.raises(ValueError, match=r"a batch of one: request\[0:1\]"):
        request[0]
