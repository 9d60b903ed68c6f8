"""HSTU against plain loops: its sum, its normaliser, its times, its costs.

What it shares with every encoder is in test_encoders.py, test_scoring.py and
test_user_cache.py: candidate independence, padding, leakage, amortized training, equal
strategies, extension.
"""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_edu.attention.pointwise import PointwiseBlock, attend_pointwise
from recsys_edu.cost import count
from recsys_edu.encoders import hstu
from recsys_edu.encoders.base import Events
from recsys_edu.encoders.hstu import HSTU, RelativeBias, bucket, relation
from recsys_edu.scoring.strategies import amortized, naive, single_pass
from recsys_edu.scoring.user_cache import UserCache, grow

FORMS = {
    "naive": naive,
    "single pass": single_pass,
    "amortized": lambda model, request: amortized(model, request, micro_batch=2),
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def make_hstu(d=8, layers=2, heads=2):
    """In float64, with weights large enough for all parts to be heard."""
    torch.manual_seed(0)
    encoder = HSTU(d, layers=layers, heads=heads).double().eval()
    for weight in encoder.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return encoder


def pairs(run):
    """The shape [B, Q, K] of every table of biases that is made while ``run`` runs."""
    shapes, forward = [], RelativeBias.forward

    def seen(self, rows):
        shapes.append(tuple(rows.shape))
        return forward(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RelativeBias, "forward", seen)
        run()
    return shapes


def make_events(n, d=8, *, now=10**6, seed=0):
    """One history at random, its moments from seconds to days before ``now``."""
    generator = torch.Generator().manual_seed(seed)
    seconds = torch.randint(now, (1, n), generator=generator).sort(1).values
    vectors = torch.randn(1, n, d, generator=generator, dtype=torch.float64)
    mask = torch.ones(1, n, dtype=torch.bool)
    return Events(vectors, mask, timestamp=seconds, now=torch.tensor([[now]]))


# Distances.


def test_a_bucket_is_the_logarithm_of_a_distance():
    distances = [*range(70), 86_399, 2**24 - 2, 2**24 - 1, 2**25 - 2]
    expected = [math.floor(math.log2(1 + distance)) for distance in distances]
    assert bucket(torch.tensor(distances)).tolist() == expected
    assert bucket(torch.tensor([0, -1, -(10**9)])).tolist() == [0, 0, 0]
    assert bucket(torch.tensor([2**25 - 1, 2**25, 2**40])).tolist() == [25, 25, 25]


def test_a_bias_is_one_number_of_each_scale_for_each_head():
    bias = RelativeBias(3)
    torch.nn.init.normal_(bias.position), torch.nn.init.normal_(bias.time)
    events, seconds = torch.tensor([[[0, 1, 9]]]), torch.tensor([[[0], [5], [10**5]]])
    got = bias(relation(events, seconds))
    assert got.shape == (1, 3, 3, 3)
    for q in range(3):
        for k in range(3):
            row = bias.position[[0, 1, 3][k]] + bias.time[[0, 2, 16][q]]
            assert torch.equal(got[0, :, q, k], row)
    assert torch.equal(bias.itself.flatten(), got[0, :, 0, 0])


# The formula.


def test_attention_is_a_sum_of_silus_over_what_may_be_read():
    q, k, v = torch.randn(3, 2, 2, 4, 3, dtype=torch.float64).unbind()
    bias = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    mask = torch.rand(2, 1, 4, 4) < 0.5
    mask[0, 0, 0] = False
    n = torch.tensor([1, 2, 5, 9])[:, None]
    expected = torch.zeros_like(q)
    for b, h, i, j in torch.cartesian_prod(*map(torch.arange, (2, 2, 4, 4))):
        if mask[b, 0, i, j]:
            score = q[b, h, i] @ k[b, h, j] / math.sqrt(3) + bias[b, h, i, j]
            expected[b, h, i] += score * torch.sigmoid(score) * v[b, h, j] / n[i]
    torch.testing.assert_close(attend_pointwise(q, k, v, mask, n, bias), expected)
    assert (attend_pointwise(q, k, v, mask, n, bias)[0, :, 0] == 0).all()


def test_a_token_s_own_key_is_one_more_part_of_the_sum():
    torch.manual_seed(0)
    block = PointwiseBlock(8, 2, dropout=0.0).double()
    x, y = torch.randn(2, 1, 3, 8, dtype=torch.float64).unbind()
    k, v = block.keys_values(y)
    own = torch.randn(2, 1, 1, dtype=torch.float64)
    got = block(x, k, v, None, 4, itself=own)
    for i in range(3):  # as if its key were a fourth, for it alone
        token = x[:, i : i + 1]
        k_own, v_own = block.keys_values(token)
        both = torch.cat([k, k_own], dim=2), torch.cat([v, v_own], dim=2)
        bias = torch.cat([torch.zeros(2, 1, 3), own], dim=-1)
        torch.testing.assert_close(got[:, [i]], block(token, *both, None, 4, bias))


def by_hand(encoder, events, item):
    """One user and one candidate, token by token and key by key: [d]."""
    x = [*events.vectors[0], item]
    when = [*events.timestamp[0].tolist(), int(events.now)]
    for block, bias in zip(encoder.blocks, encoder.biases, strict=True):
        heads, d = block.heads, len(item)
        uq = [F.silu(block.gate_query(block.norm(token))) for token in x]
        kv = [F.silu(block.key_value(block.norm(token))) for token in x]
        layer = []
        for i, token in enumerate(x):
            u, q = uq[i].split(d)
            read = torch.zeros(heads, d // heads, dtype=torch.float64)
            for j in range(i + 1):
                k, v = (part.view(heads, -1) for part in kv[j].split(d))
                rows = [
                    math.floor(math.log2(1 + x)) for x in (i - j, when[i] - when[j])
                ]
                b = bias.position[rows[0]] + bias.time[rows[1]]
                score = (q.view(heads, -1) * k).sum(1) / math.sqrt(d // heads) + b
                read += F.silu(score)[:, None] * v / (i + 1)
            layer.append(token + block.out(block.norm_read(read.flatten()) * u))
        x = layer
    return encoder.norm(x[-1])


@pytest.mark.parametrize("layers, heads", [(1, 1), (2, 2), (3, 4)])
@pytest.mark.parametrize("n", [0, 1, 5])
@torch.no_grad()
def test_hstu_is_its_formula(layers, heads, n):
    encoder, events = make_hstu(layers=layers, heads=heads), make_events(n)
    items = torch.randn(1, 3, 8, dtype=torch.float64)
    expected = torch.stack([by_hand(encoder, events, item) for item in items[0]])
    torch.testing.assert_close(encoder(events, None, items)[0], expected)
    torch.testing.assert_close(encoder.one_pass(items, events)[0], expected)


# The normaliser.


def normalisers(encoder, run):
    """The n of every call of a block while ``run`` runs, flattened."""
    seen, hooks = [], []
    for block in encoder.blocks:
        hook = block.register_forward_pre_hook(lambda _, args: seen.append(args[4]))
        hooks.append(hook)
    run()
    for hook in hooks:
        hook.remove()
    return [n.flatten().tolist() for n in seen]


@pytest.mark.parametrize("m", [1, 2, 7])
def test_a_query_is_divided_by_the_keys_it_may_read(m):
    """Events by 1 .. n, candidates by n + 1, however many of them there are."""
    encoder, events = make_hstu(), make_events(4)
    items = torch.randn(1, m, 8, dtype=torch.float64)
    history = [[1, 2, 3, 4]]  # nobody reads what the second block makes of events
    candidates = 2 * [[5]]
    assert normalisers(encoder, lambda: encoder(events, None, items)) == (
        history + candidates
    )
    assert normalisers(encoder, lambda: encoder.one_pass(items, events)) == (
        2 * [[1, 2, 3, 4, *m * [5]]]
    )


def test_neither_padding_nor_extension_nor_a_prefix_changes_what_it_is_divided_by():
    encoder, events = make_hstu(), make_events(4)
    first, last = events[:, :3], events[:, 3:]
    first, last = (replace(part, now=events.now) for part in (first, last))

    def extended():
        encoder.extend(encoder.encode_history(first, None), last, None)

    assert normalisers(encoder, extended) == [[1, 2, 3], [4]]
    pad = (0, 2)
    padded = Events(
        F.pad(events.vectors, (0, 0, *pad), value=1.0),
        F.pad(events.mask, pad),
        torch.tensor([[0, 3]]),
        timestamp=F.pad(events.timestamp, pad),
        now=events.now,
    )
    items = torch.randn(1, 2, 8, dtype=torch.float64)
    history, *candidates = normalisers(encoder, lambda: encoder(padded, None, items))
    assert history == [1, 2, 3, 4, 5, 6]
    assert candidates == 2 * [[1, 4]]


@torch.no_grad()
def test_the_length_of_the_sequence_would_be_a_wrong_normaliser():
    """Divided by N + b_m, the same candidate among others is scored otherwise."""
    encoder, events = make_hstu(layers=1), make_events(6)
    [block], code = encoder.blocks, encoder.encode_history(events, None)
    items = torch.randn(1, 8, 8, dtype=torch.float64)

    def first(m, n):
        return block(items[:, :m], code.k[:, 0], code.v[:, 0], None, n, itself=0)[:, 0]

    assert (first(1, 6 + 1) - first(8, 6 + 1)).abs().max() < 1e-12
    assert (first(1, 6 + 1) - first(8, 6 + 8)).abs().max() > 1e-6


# Chunks.


@settings(max_examples=15)
@given(
    size=st.integers(0, 3),
    chunk=st.integers(1, 9),
    n=st.integers(0, 8),
    seed=st.integers(0, 999),
)
def test_a_history_may_go_through_in_chunks(
    ranker, draw_request, assert_same, size, chunk, n, seed
):
    """Padded, shorter than a chunk, or empty."""
    request = draw_request(seed, b=2, n=n, m=3)

    def chunked(model):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hstu, "CHUNK", chunk)
            return model(request)

    assert_same(chunked, lambda model: model(request), ranker("HSTU", size))


def test_the_chunks_of_a_history_are_trained_as_one(monkeypatch):
    encoder, events = make_hstu(layers=3), make_events(7)
    items = torch.randn(1, 2, 8, dtype=torch.float64)

    def gradients():
        weights = tuple(encoder.parameters())
        return torch.autograd.grad(encoder(events, None, items).sum(), weights)

    whole = gradients()
    monkeypatch.setattr(hstu, "CHUNK", 3)
    for got, expected in zip(gradients(), whole, strict=True):
        torch.testing.assert_close(got, expected)


def test_a_chunk_reads_the_events_up_to_its_own_end(monkeypatch):
    """So nothing is N x N, and less than half of the pairs is made for nothing."""
    monkeypatch.setattr(hstu, "CHUNK", 4)
    shapes = pairs(lambda: make_hstu().encode_history(make_events(10), None))
    assert shapes == [(1, 4, 4), (1, 4, 8), (1, 2, 10)]


# Time.


@every_form
def test_the_time_of_the_request_is_read(ranker, draw_request, form):
    model, request = ranker("HSTU").float64, draw_request(2, 2, 6, 3, full=True)
    later = replace(request, timestamp=request.timestamp + 2**24)
    assert (form(model, later) - form(model, request)).abs().max() > 1e-3


@every_form
def test_only_differences_of_time_are_read(ranker, draw_request, form):
    model, request = ranker("HSTU").float64, draw_request(2, 2, 6, 3)
    history = replace(request.history, timestamp=request.history.timestamp + 12345)
    moved = replace(request, timestamp=request.timestamp + 12345, history=history)
    assert torch.equal(form(model, moved), form(model, request))


def test_the_order_of_events_is_read_where_their_times_are_equal(ranker, draw_request):
    model, request = ranker("HSTU").float64, draw_request(2, 1, 6, 3, full=True)
    history = replace(request.history, timestamp=torch.zeros(1, 6, dtype=torch.int64))
    before = model(replace(request, history=history))
    back = replace(history, item=history.item.flip(1), action=history.action.flip(1))
    assert (model(replace(request, history=back)) - before).abs().max() > 1e-3


@settings(max_examples=15)
@given(size=st.integers(0, 3), n=st.integers(0, 6), seed=st.integers(0, 999))
def test_each_candidate_may_have_a_time_of_its_own(
    ranker, draw_request, assert_same, size, n, seed
):
    """As if it had come alone, at its time."""
    request = draw_request(seed, b=2, n=n, m=3)
    later = 2 ** torch.randint(
        25, (2, 3), generator=torch.Generator().manual_seed(seed)
    )
    request = replace(request, timestamp=request.timestamp + later)

    def alone(model):
        parts = zip(
            request.timestamp.split(1, 1), request.candidates.split(1, 1), strict=True
        )
        scores = [model(replace(request, timestamp=t, candidates=c)) for t, c in parts]
        return torch.cat(scores, dim=1)

    for form in (lambda model: model(request), lambda m: single_pass(m, request)):
        assert_same(form, alone, ranker("HSTU", size))


def test_what_is_kept_of_events_knows_no_request_s_time():
    """Not in any layer; so a code made at one time serves at every other."""
    encoder, events = make_hstu(layers=3), make_events(6)
    later = events.now + 10**7
    code = encoder.encode_history(events, None)
    other = encoder.encode_history(replace(events, now=later), None)
    assert torch.equal(code.k, other.k) and torch.equal(code.v, other.v)
    kept = encoder.at(code, later)
    assert kept.k is code.k and kept.now is later and code.now is events.now


def test_an_extended_code_stands_at_the_time_of_the_new_request(ranker, draw_request):
    model, request = ranker("HSTU").float64, draw_request(1, 1, 6, 3, full=True)
    past = request.history.map(lambda t: t[:, :4])
    earlier = replace(request, history=past, timestamp=request.timestamp - 1)
    code = grow(model, model.encode_request(earlier).code, request, known=4)
    whole = model.encode_request(request).code
    for part in ("k", "v", "mask", "timestamp", "now"):
        torch.testing.assert_close(getattr(code, part), getattr(whole, part))


@settings(max_examples=15)
@given(
    size=st.integers(0, 2),
    ends=st.lists(st.integers(0, 8), min_size=1, max_size=4),
    seed=st.integers(0, 999),
)
def test_a_kept_history_serves_later_requests_at_their_times(
    ranker, draw_request, assert_same, size, ends, seed
):
    """Time has passed and events have come, or not: hits and extensions, both exact."""
    request, requests = draw_request(seed, 1, 8, 3, full=True), []
    for end in sorted(ends):
        now = request.timestamp + 2 ** (20 + len(requests))
        past = request.history.map(lambda t, end=end: t[:, :end])
        requests.append(replace(request, timestamp=now, history=past))

    def cached(model):
        cache = UserCache(model, max_bytes=10**6)
        scores = [
            amortized(model, request, micro_batch=2, encode=cache.encode_request)
            for request in requests
        ]
        assert set(cache.outcomes) <= {"new user", "hit", "extended"}
        assert cache.outcomes["new user"] == 1
        return torch.cat(scores)

    assert_same(
        cached,
        lambda model: torch.cat([naive(model, request) for request in requests]),
        ranker("HSTU", size),
    )


# Costs.


def request_flops(n, d, layers, known=0):
    """Of n events after ``known`` others: the last layer's keys and values only."""
    keys_values, rest = 4 * n * d * d, 6 * n * d * d + 4 * n * (known + n) * d
    return layers * keys_values + (layers - 1) * rest


def candidate_flops(n, d, layers):
    """Of one candidate: gate, query, its own key and value, n keys read, output."""
    return layers * (10 * d * d + 4 * n * d)


@pytest.mark.parametrize("d, layers, heads", [(8, 1, 1), (8, 3, 4), (12, 2, 2)])
@pytest.mark.parametrize("n, m", [(0, 1), (5, 3), (17, 1)])
@torch.no_grad()
def test_the_flops_of_each_clock_are_known(d, layers, heads, n, m):
    encoder, events = make_hstu(d, layers, heads), make_events(n, d)
    items = torch.randn(1, m, d, dtype=torch.float64)
    assert count(encoder.encode_items, items).flops == 0
    encoded = count(encoder.encode_history, events, None).flops
    assert encoded == request_flops(n, d, layers)
    code = encoder.encode_history(events, None)
    fused = count(encoder.fuse, items, code).flops
    assert fused == m * candidate_flops(n, d, layers)
    new = make_events(2, d)
    extended = count(encoder.extend, code, new, None).flops
    assert extended == request_flops(2, d, layers, known=n)
    # One sequence runs every layer over every token, and over every pair.
    tokens = n + m
    expected = layers * (10 * tokens * d * d + 4 * tokens * tokens * d)
    assert count(encoder.one_pass, items, events).flops == expected


@torch.no_grad()
def test_candidates_of_one_request_share_their_biases():
    """One row of N for all of them: a look-up for each pair would cost M times that."""
    encoder, code = make_hstu(), make_hstu().encode_history(make_events(5), None)
    items = torch.randn(1, 64, 8, dtype=torch.float64)
    assert pairs(lambda: encoder.fuse(items, code)) == [(1, 1, 5), (1, 1, 5)]
