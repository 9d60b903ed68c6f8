"""Batches of amortized training: every row once, beside its user's others."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys_edu.batch import user_batches
from recsys_edu.data import Histories
from recsys_edu.data.synthetic import planted_world


@pytest.fixture(scope="module")
def world():
    return planted_world(seed=3, n_impressions=600, n_users=20, n_items=10**6)


@given(
    first=st.integers(0, 500), count=st.integers(1, 100), tokens=st.integers(1, 2000)
)
def test_every_row_comes_once_with_its_own_past(world, first, count, tokens):
    log, histories = world.log, Histories.from_log(world.log)
    rows = np.arange(first, first + count)
    seen = []
    for batch in user_batches(log, histories, rows, max_tokens=tokens):
        request = batch.request
        b, m = request.candidates.shape
        assert b == 1 or b * (request.history.item.shape[1] + m) <= tokens
        for i, j in (batch.row >= 0).nonzero().tolist():
            row, n = int(batch.row[i, j]), int(request.visible[i, j])
            assert request.user[i] == log.user[row]
            assert request.candidates[i, j] == log.item[row]
            assert batch.label[i, j] == log.label[row]
            past = log.item[histories_rows(log, row)]
            assert request.history.item[i, :n].tolist() == past.tolist()
            assert request.history.mask[i, :n].all()
            seen.append(row)
    assert sorted(seen) == rows.tolist()


def histories_rows(log, row):
    """Rows strictly earlier than ``row``, of its user, in time order."""
    earlier = (log.user == log.user[row]) & (log.timestamp < log.timestamp[row])
    return np.flatnonzero(earlier)


def test_a_generator_shuffles_batches_and_keeps_their_content(world):
    log, histories = world.log, Histories.from_log(world.log)

    def candidates(seed):
        generator = None if seed is None else np.random.default_rng(seed)
        batches = user_batches(
            log, histories, np.arange(600), max_tokens=200, generator=generator
        )
        return [batch.request.candidates for batch in batches]

    plain, once, again, other = (candidates(seed) for seed in (None, 1, 1, 2))
    assert all(map(torch.equal, once, again))
    key = [tensor.flatten().tolist() for tensor in once]
    assert key != [tensor.flatten().tolist() for tensor in other]
    assert sorted(key) == sorted(tensor.flatten().tolist() for tensor in plain)
