"""The baselines that keep r rows: what a row is, and what may grow."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_edu.attention.softmax import attend
from recsys_edu.encoders.base import Events
from recsys_edu.encoders.low_rank import LREA, TruncatedMHA

PADDINGS = [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]


def read_by(encoder, items, rows):
    """h of items [M, d] over rows [R, d], by the formula."""
    attention = encoder.attention
    q = attention.queries(items[None])
    return attention.update(attend(q, *attention.keys_values(rows[None])))[0]


@pytest.mark.parametrize("r", [1, 2, 3, 9])
def test_truncated_mha_reads_the_start_and_the_last_r_events(r):
    encoder = TruncatedMHA(8, r=r).eval()
    vectors, items = torch.randn(4, 5, 8), torch.randn(4, 6, 8)
    mask = torch.tensor(PADDINGS).bool()
    got = encoder(Events(vectors=vectors, mask=mask), torch.randn(4, 1, 8), items)
    for b in range(4):
        rows = torch.cat([encoder.start[None], vectors[b, mask[b]][-r:]])
        torch.testing.assert_close(got[b], read_by(encoder, items[b], rows))


@pytest.mark.parametrize("positions", [2, 256])
def test_lrea_reads_mixtures_by_recency(positions):
    """Row i weighs the start by a_i[0] and the newest event by a_i[1]."""
    encoder = LREA(8, r=3, positions=positions).eval()
    vectors, items = torch.randn(4, 5, 8), torch.randn(4, 6, 8)
    mask = torch.tensor(PADDINGS).bool()
    got = encoder(Events(vectors=vectors, mask=mask), torch.randn(4, 1, 8), items)
    for b in range(4):
        newest_first = vectors[b, mask[b]].flip(0)
        tokens = torch.cat([encoder.start[None], newest_first])
        place = [min(j, positions) for j in range(len(tokens))]
        weights = encoder.mixture[place].softmax(dim=0)  # [1 + n, 3]
        rows = torch.stack([weights[:, i] @ tokens for i in range(3)])
        torch.testing.assert_close(got[b], read_by(encoder, items[b], rows))


@settings(max_examples=20, deadline=None)
@given(
    size=st.integers(0, 2),
    n=st.integers(0, 8),
    cuts=st.lists(st.integers(0, 8), min_size=1, max_size=4),
    seed=st.integers(0, 999),
)
def test_the_last_events_in_chunks_are_the_last_events_at_once(
    ranker, draw_request, assert_same, size, n, cuts, seed
):
    history = draw_request(seed, b=2, n=n, m=1, full=True).history
    cuts = [*sorted(min(cut, n) for cut in cuts), n]

    def events(model, since, end):
        part = history.map(lambda t: t[:, :end])
        vectors = model.embeddings.events(part, since)
        return Events(vectors=vectors, mask=part.mask[:, since:])

    def keys_values(code):
        return torch.stack([code.k, code.v])

    def in_chunks(model):
        code = model.encoder.encode_history(events(model, 0, cuts[0]), None)
        for known, end in pairwise(cuts):
            code = model.encoder.extend(code, events(model, known, end), None)
        return keys_values(code)

    assert_same(
        in_chunks,
        lambda model: keys_values(
            model.encoder.encode_history(events(model, 0, n), None)
        ),
        ranker("truncated MHA", size),
    )
