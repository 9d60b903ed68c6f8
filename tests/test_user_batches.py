"""Batches of amortized training: every row once, beside its user's others."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_edu.batch import user_batches
from recsys_edu.data import Histories
from recsys_edu.data.synthetic import planted_world


@pytest.fixture(scope="module")
def world():
    world = planted_world(seed=3, n_impressions=600, n_users=20, n_items=10**6)
    return world.log, Histories.from_log(world.log)


MOST = st.none() | st.integers(1, 40)


@settings(max_examples=50)
@given(
    first=st.integers(0, 500),
    count=st.integers(1, 100),
    tokens=st.integers(1, 2000),
    max_events=st.none() | st.integers(0, 40),
    max_candidates=MOST,
    seed=st.none() | st.integers(0, 9),
)
def test_every_row_comes_once_with_its_own_past(
    world, first, count, tokens, max_events, max_candidates, seed
):
    log, histories = world
    rows, seen = np.arange(first, first + count), []
    batches = user_batches(
        log, histories, rows, max_tokens=tokens, max_events=max_events,
        max_candidates=max_candidates,
        generator=None if seed is None else np.random.default_rng(seed),
    )  # fmt: skip
    for batch in batches:
        request = batch.request
        b, m = request.candidates.shape
        assert b == 1 or b * (request.history.item.shape[1] + m) <= tokens
        assert m <= (max_candidates or count)
        for i in range(b):
            pasts = []
            for j in (batch.row[i] >= 0).nonzero().flatten().tolist():
                row, n = int(batch.row[i, j]), int(request.visible[i, j])
                assert request.user[i] == log.user[row]
                assert request.timestamp[i, j] == log.timestamp[row]
                assert request.candidates[i, j] == log.item[row]
                assert batch.label[i, j] == log.label[row]
                past = log.item[histories_rows(log, row)]
                # The end of the past, from the same event on for the whole run.
                assert (
                    request.history.item[i, :n].tolist()
                    == past[len(past) - n :].tolist()
                )
                assert request.history.mask[i, :n].all()
                pasts.append((len(past), n))
                seen.append(row)
            cut = {past - n for past, n in pasts}
            fewest = min(past for past, _ in pasts)
            window = fewest if max_events is None else max_events
            assert cut == {max(fewest - window, 0)}
            assert request.history.mask[i].sum() == max(n for _, n in pasts)
    assert sorted(seen) == rows.tolist()


def histories_rows(log, row):
    """Rows strictly earlier than ``row``, of its user, in time order."""
    earlier = (log.user == log.user[row]) & (log.timestamp < log.timestamp[row])
    return np.flatnonzero(earlier)


@pytest.mark.parametrize("tokens", [40, 100, 200])
def test_a_batch_holds_as_many_runs_as_it_may(world, tokens):
    """The next run, which begins the next batch, would have been one too many."""
    log, histories = world
    sizes = [
        (b.row.shape[0], b.request.history.item.shape[1], b.row.shape[1], b[:1])
        for b in user_batches(
            log, histories, np.arange(600), max_tokens=tokens, max_events=20,
            max_candidates=20,
        )
    ]  # fmt: skip
    assert len(sizes) > 2
    for (runs, n, m, _), (*_, first) in pairwise(sizes):
        n = max(n, int(first.request.history.mask.sum()))
        m = max(m, int((first.row >= 0).sum()))
        assert (runs + 1) * (n + m) > tokens


def test_a_generator_shuffles_batches_and_keeps_their_content(world):
    log, histories = world

    def candidates(seed):
        generator = None if seed is None else np.random.default_rng(seed)
        batches = user_batches(
            log, histories, np.arange(600), max_tokens=200, generator=generator
        )
        return [batch.request.candidates for batch in batches]

    plain, once, again, other = (candidates(seed) for seed in (None, 1, 1, 2))
    assert all(map(torch.equal, once, again))

    def runs(batches):
        return [row.tolist() for batch in batches for row in batch]

    assert runs(once) != runs(other)
    lengths = [sorted(map(len, runs(batches))) for batches in (once, plain)]
    assert lengths[0] == lengths[1]


def test_runs_of_one_size_change_their_company(world):
    """A shuffle of whole batches would show a user's runs together in every epoch."""
    log, histories = world

    def companies(seed):
        batches = user_batches(
            log, histories, np.arange(600), max_tokens=60, max_events=5,
            max_candidates=5, generator=np.random.default_rng(seed),
        )  # fmt: skip
        return {frozenset(batch.row[:, 0].tolist()) for batch in batches}

    assert companies(1) != companies(2)


@pytest.mark.parametrize("wrong", [dict(max_events=-1), dict(max_candidates=0)])
def test_a_limit_that_leaves_nothing_is_refused(world, wrong):
    log, histories = world
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .* or more"):
        next(user_batches(log, histories, np.arange(9), max_tokens=9, **wrong))
