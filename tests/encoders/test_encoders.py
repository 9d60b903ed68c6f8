"""What every encoder promises, over random shapes, padding, layers, heads, positions.

DESIGN's invariants 2, 3, 4 and 6 for the whole ranker; `assert_same` in conftest says
how much rounding a promise may cost. How requests are scored is in test_scoring.py.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.export import Dim
from torch.utils._pytree import tree_leaves

from recsys_edu.batch import Request, impressions_at, user_batches
from recsys_edu.cost import nbytes
from recsys_edu.data import Histories
from recsys_edu.dlrm import ItemSide
from recsys_edu.encoders.base import Events, readable
from recsys_edu.encoders.pooling import LengthOnly, MeanPooling
from recsys_edu.encoders.single_pass import SinglePassEncoder
from recsys_edu.encoders.target_attention import DIN
from recsys_edu.positions import BUCKETS
from recsys_edu.training import log_loss

TRANSFORMERS = [
    "concat",
    "concat, wide",
    "append-self",
    "append-causal",
    "append-cross",
    "append-cross, causal",
    "two-tower",
]
# Those that keep r rows of a history.
LOW_RANK = [
    "LIME-MHA",
    "LIME-sum",
    "LIME-XOR, one block",
    "LIME-XOR, two blocks",
    "LIME-XOR",
    "truncated MHA",
    "LREA",
]
ENCODERS = ["mean pooling", "length", "DIN", *TRANSFORMERS, "STCA", "HSTU", *LOW_RANK]
ONE_SEQUENCE = ["append-causal", "append-cross", "append-cross, causal", "HSTU"]
# An event reads no later one, so a prefix of a history has a code of its own.
PREFIXED = [
    "mean pooling",
    "length",
    "DIN",
    "append-causal",
    "append-cross, causal",
    "two-tower",
    "STCA",
    "HSTU",
    *(name for name in LOW_RANK if name != "LIME-XOR"),
]
UNPREFIXED = sorted(set(ENCODERS) - set(PREFIXED))

SIZES = st.integers(0, 3)
SHAPES = st.fixed_dictionaries(
    dict(b=st.integers(1, 3), n=st.integers(0, 6), m=st.integers(1, 5)),
)
SEEDS = st.integers(0, 999)
every_encoder = pytest.mark.parametrize("name", ENCODERS)
prefixed = pytest.mark.parametrize("name", PREFIXED)
few = settings(max_examples=8, deadline=None)


def rows(request):
    return range(len(request.user))


# Candidates: one alone is scored as in any company.


@every_encoder
@few
@given(size=SIZES, shape=SHAPES, seed=SEEDS)
def test_a_score_ignores_the_other_candidates(
    ranker, draw_request, assert_same, name, size, shape, seed
):
    """Swapped, permuted, cut to a subset, and repeated."""
    request, m = draw_request(seed, **shape), shape["m"]
    order = torch.randperm(m, generator=torch.Generator().manual_seed(seed))
    some = order[: 1 + seed % m]  # permuted and cut

    def alone(model):
        one = (replace(request, candidates=request.candidates[:, [k]]) for k in some)
        return torch.cat([model(r) for r in one], dim=1)

    def cut(model):
        return model(replace(request, candidates=request.candidates[:, some]))

    def permuted(model):
        scores = model(replace(request, candidates=request.candidates[:, order]))
        return scores[:, : len(some)]

    def repeated(model):
        twice = torch.cat([request.candidates, request.candidates], dim=1)
        return model(replace(request, candidates=twice))[:, m:][:, some]

    for form in (cut, permuted, repeated):
        assert_same(form, alone, ranker(name, size))


def scores_of_item_vectors(model, request):
    """The candidates' vectors [B, M, S, d] as leaves of a graph, and their scores."""
    vectors = model.embeddings.items(request.candidates).detach().requires_grad_()
    items = ItemSide(
        vectors,
        model.top.item(model.embeddings.items.own(vectors)),
        model.encoder.encode_items(vectors.sum(-2)),
    )
    return vectors, model.fuse(items, model.encode_request(request))


@pytest.mark.parametrize(
    "name", [*ENCODERS, *(f"{name}, one pass" for name in ONE_SEQUENCE)]
)
@pytest.mark.parametrize("size", [1, 2])
def test_no_gradient_reaches_another_candidate(ranker, draw_request, name, size):
    """Not through one masked sequence either."""
    request = draw_request(size, b=2, n=4, m=3)
    model = ranker(name.removesuffix(", one pass"), size).float64
    if name.endswith(", one pass"):
        model = model.with_encoder(SinglePassEncoder(model.encoder))
    vectors, scores = scores_of_item_vectors(model, request)
    for b in range(2):
        for m in range(3):
            [gradient] = torch.autograd.grad(scores[b, m], vectors, retain_graph=True)
            assert gradient[b, m].abs().max() > 0
            gradient[b, m] = 0
            assert (gradient == 0).all()


@every_encoder
@few
@given(size=SIZES, shape=SHAPES, seed=SEEDS)
def test_the_gradient_of_a_score_is_that_of_the_candidate_alone(
    ranker, draw_request, assert_same, name, size, shape, seed
):
    request = draw_request(seed, **shape)
    b, m = seed % shape["b"], seed % shape["m"]

    @torch.enable_grad()
    def gradient(model, score):
        weights = list(model.parameters())
        parts = torch.autograd.grad(
            score, weights, allow_unused=True, materialize_grads=True
        )
        return torch.cat([part.flatten() for part in parts])

    @torch.enable_grad()
    def among_others(model):
        return gradient(model, model(request)[b, m])

    @torch.enable_grad()
    def alone(model):
        one = replace(request, candidates=request.candidates[:, [m]])[b : b + 1]
        return gradient(model, model(one)[0, 0])

    assert_same(among_others, alone, ranker(name, size))


@every_encoder
def test_all_candidates_share_one_position(ranker, draw_request, assert_same, name):
    """The same item in every column scores the same: a column is not a position."""
    request = draw_request(1, b=3, n=6, m=5)
    request = replace(request, candidates=request.candidates[:, :1].expand(-1, 5))
    assert_same(
        lambda model: model(request),
        lambda model: model(request)[:, :1].expand(-1, 5),
        ranker(name, 2),
    )


@pytest.mark.parametrize("name", sorted(set(ENCODERS) - {"HSTU"}))
def test_who_reads_no_time_scores_the_same_at_any(ranker, draw_request, name):
    """What reading it means is in test_hstu.py."""
    request = draw_request(2, b=2, n=6, m=3)
    later = replace(request, timestamp=request.timestamp + 10**6)
    model = ranker(name, 2).float32
    assert torch.equal(model(later), model(request))


# Padding: it is as if it were not there. The door brings it to the end: test_batch.py.


@every_encoder
@few
@given(size=SIZES, shape=SHAPES, seed=SEEDS)
def test_padding_never_changes_a_score(
    ranker, draw_request, unpadded, assert_same, name, size, shape, seed
):
    """Padded to the longest of the batch, or not at all: the same scores."""
    request = draw_request(seed, **shape)

    def alone(model):
        return torch.cat([model(unpadded(request, b)) for b in rows(request)])

    assert_same(lambda model: model(request), alone, ranker(name, size))


@every_encoder
@pytest.mark.parametrize("n", [0, 4])
def test_an_empty_history_is_valid_and_trains(
    make_model, draw_request, unpadded, assert_same, name, n
):
    """No column, or columns that are all padding, beside a user who has events."""
    request = draw_request(0, b=2, n=n, m=3, full=True)
    request.history.mask[0] = False
    model = make_model(name, positions="time gap")
    scores = model(request)
    assert scores.isfinite().all()
    torch.testing.assert_close(scores[:1], model(unpadded(request, 0)))
    scores.sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in grads)


@every_encoder
def test_what_stands_under_padding_is_never_read(ranker, draw_request, name):
    """However large it is: its key is masked before the softmax, not after."""
    request, model = draw_request(7, b=3, n=6, m=2), ranker(name, 0).float32
    encoder, embeddings = model.encoder, model.embeddings
    events, users = embeddings.events(request.history), embeddings.users(request.user)
    items = embeddings.items(request.candidates).sum(-2)
    mask = request.history.mask
    assert not mask.all()
    loud = torch.where(mask[..., None], events, 1e6 * torch.sign(events))
    quiet = torch.where(mask[..., None], events, 0)
    when = dict(timestamp=request.history.timestamp, now=request.timestamp)
    assert torch.equal(
        encoder(Events(loud, mask, **when), users, items),
        encoder(Events(quiet, mask, **when), users, items),
    )


@every_encoder
@few
@given(size=SIZES, seed=SEEDS, m=st.integers(1, 3))
def test_two_requests_of_one_user_may_share_a_batch(
    ranker, draw_request, unpadded, assert_same, name, size, seed, m
):
    """Two moments of one user and somebody else: each row is its own request."""
    drawn = draw_request(seed, b=3, n=6, m=m)
    same = drawn[torch.tensor([0, 0, 2])].history
    count = torch.tensor([2, 5, 6])[:, None]
    history = replace(same, mask=torch.arange(6) < count)
    user = drawn.user[torch.tensor([0, 0, 2])]
    request = replace(drawn, user=user, history=history)
    assert_same(
        lambda model: model(request),
        lambda model: torch.cat([model(unpadded(request, b)) for b in range(3)]),
        ranker(name, size),
    )


# Visibility: which candidate reads which events.


def test_readable_counts_events_and_not_columns():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    assert torch.equal(readable(mask, None), mask[:, None])
    visible = torch.tensor([[0, 2], [1, 2], [0, 3]])
    assert readable(mask, visible).int().tolist() == [
        [[0, 0, 0, 0, 0], [0, 0, 1, 1, 0]],
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]],
        [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
    ]


@prefixed
@few
@given(size=st.integers(0, 2), shape=SHAPES, seed=SEEDS)
def test_each_candidate_reads_a_prefix_of_its_own(
    ranker, draw_request, unpadded, assert_same, name, size, shape, seed
):
    """The oracle scores each candidate with its prefix; some of them are empty."""
    request = draw_request(seed, **shape)
    length = request.history.mask.sum(1, keepdim=True)
    part = torch.rand(
        request.candidates.shape, generator=torch.Generator().manual_seed(seed)
    )
    visible = (part * (length + 1)).long()

    def one_by_one(model):
        scores = torch.zeros_like(part, dtype=model.top.user.weight.dtype)
        for b in rows(request):
            row = unpadded(request, b)
            for m in range(shape["m"]):
                prefix = row.history.map(lambda t, n=visible[b, m]: t[:, :n])
                one = Request(
                    row.user, row.timestamp, row.candidates[:, m : m + 1], prefix
                )
                scores[b, m] = model(one)[0, 0]
        return scores

    assert_same(
        lambda model: model(replace(request, visible=visible)),
        one_by_one,
        ranker(name, size),
    )


@prefixed
def test_a_candidate_never_reads_past_what_is_visible(world, ranker, name):
    """Invariant 4: rewriting the events that are not visible changes no score."""
    histories = Histories.from_log(world.log)
    model = ranker(name, 0).float32
    for batch in user_batches(world.log, histories, np.arange(120), max_tokens=10**6):
        request = batch.request
        column = torch.arange(request.history.item.shape[1])
        before = model(request)
        for m in range(request.candidates.shape[1]):
            late = column >= request.visible[:, m : m + 1]
            item = torch.where(late, 29, request.history.item)
            after = model(replace(request, history=replace(request.history, item=item)))
            assert torch.equal(after[:, m], before[:, m])


@pytest.mark.parametrize("name", UNPREFIXED)
def test_an_encoder_without_prefixes_refuses_amortized_training(world, ranker, name):
    histories = Histories.from_log(world.log)
    [batch, *_] = user_batches(world.log, histories, np.arange(100), max_tokens=10**6)
    with pytest.raises(ValueError, match="one impression a row"):
        ranker(name, 0).float32(batch.request)


@every_encoder
def test_recency_refuses_amortized_training(world, ranker, name):
    histories = Histories.from_log(world.log)
    [batch, *_] = user_batches(world.log, histories, np.arange(100), max_tokens=10**6)
    model = ranker(name, positions="recency").float32
    with pytest.raises(ValueError, match="Recency counts from the end of a history"):
        model(batch.request)
    model(replace(batch.request, visible=None))


@prefixed
def test_a_known_code_is_used_as_it_is(ranker, draw_request, name):
    """`encode_request(request, code)` reads no history, whatever the positions.

    Nor does it read the time, but for HSTU, whose candidates have one.
    """
    model = ranker(name, positions="recency").float32
    request, other = (draw_request(seed, b=2, n=5, m=3) for seed in (0, 1))
    code = model.encode_request(request).code
    other = replace(
        other,
        visible=torch.ones_like(other.candidates),
        timestamp=other.timestamp + 1,
    )
    known = model.encode_request(other, code).code
    assert (known is code) == (name != "HSTU")
    if name == "HSTU":
        assert known.now is other.timestamp and replace(known, now=code.now) == code


# Amortized training, and no leakage through it or past it.


def by_row(log, histories, at):
    """One row per impression, 64 rows a batch."""
    for first in range(0, len(at), 64):
        yield impressions_at(log, histories, at[first : first + 64], len(log))


@prefixed
@pytest.mark.parametrize("positions", ["none", "absolute", "time gap"])
def test_amortized_training_is_one_row_per_impression(world, ranker, name, positions):
    """Invariant 6: the same loss and gradients, in float64, all users in one pass."""
    log, histories = world.log, Histories.from_log(world.log)
    at = np.arange(50, 250)
    model = ranker(name, positions=positions).float64
    weights = dict(model.named_parameters())

    def loss_and_gradients(batches):
        total, gradients = 0.0, {key: 0.0 for key in weights}
        for batch in batches:
            batch = replace(batch, label=batch.label.double())
            loss = log_loss(model(batch.request), batch) * (batch.row >= 0).sum()
            parts = torch.autograd.grad(
                loss, list(weights.values()), allow_unused=True, materialize_grads=True
            )
            for key, part in zip(weights, parts, strict=True):
                gradients[key] = gradients[key] + part
            total += loss.item()
        return total, gradients

    by_user = loss_and_gradients(user_batches(log, histories, at, max_tokens=300))
    oracle = loss_and_gradients(by_row(log, histories, at))
    # Losses are added in another order: an error of as many roundings of their sum.
    budget = len(at) * 2**-52
    assert abs(by_user[0] - oracle[0]) <= budget * oracle[0]
    scale = max(gradient.abs().max() for gradient in oracle[1].values())
    for key, gradient in oracle[1].items():
        assert (by_user[1][key] - gradient).abs().max() <= budget * scale, key


@prefixed
def test_users_with_different_numbers_of_candidates_share_a_batch(
    world, ranker, assert_same, name
):
    log, histories = world.log, Histories.from_log(world.log)
    at = np.arange(60)
    [batch] = user_batches(log, histories, at, max_tokens=10**6)
    assert len(set((batch.row >= 0).sum(1).tolist())) > 1
    real = batch.row >= 0

    def alone(model):
        one = impressions_at(log, histories, batch.row[real].numpy(), len(log))
        return model(one.request)[:, 0]

    assert_same(lambda model: model(batch.request)[real], alone, ranker(name, 2))


@prefixed
def test_padding_among_candidates_has_no_part_in_the_loss(world, ranker, name):
    histories = Histories.from_log(world.log)
    [batch] = user_batches(world.log, histories, np.arange(60), max_tokens=10**6)
    padding = batch.row < 0
    assert padding.any()
    model = ranker(name, 0).float32
    other = replace(
        batch.request, candidates=torch.where(padding, 29, batch.request.candidates)
    )
    losses = [log_loss(model(request), batch) for request in (batch.request, other)]
    assert losses[0] == losses[1]


@every_encoder
@pytest.mark.parametrize("positions", ["absolute", "time gap"])
def test_what_happens_in_the_same_second_or_later_changes_no_score(
    world, ranker, name, positions
):
    """Invariant 4, from the log to the score: equal timestamps are not history."""
    week = 7 * 86_400
    log = replace(world.log, timestamp=world.log.timestamp // week * week)
    model = ranker(name, positions=positions).float32

    def scores(log, row):
        histories, user = Histories.from_log(log), log.user == log.user[row]
        alone = impressions_at(log, histories, np.array([row]), len(log))
        yield model(alone.request)[0, 0]
        if name in PREFIXED:
            at = np.flatnonzero(user)
            [batch] = user_batches(log, histories, at, max_tokens=10**6)
            yield model(batch.request)[batch.row == row][0]

    def rewritten(which):
        return replace(
            log,
            item=np.where(which, 29 - log.item, log.item),
            action=np.where(which, 1 - log.action, log.action),
            label=np.where(which, 1 - log.label, log.label),
        )

    tied = 0
    for row in (150, 200, 250):
        same_user, second = log.user == log.user[row], log.timestamp[row]
        now = same_user & (log.timestamp == second)
        tied += now.sum() - 1
        not_earlier = same_user & (log.timestamp >= second)
        not_earlier[row] = False
        before = list(scores(log, row))
        assert list(scores(rewritten(not_earlier), row)) == before
        earlier = same_user & (log.timestamp < second)
        moved = list(scores(rewritten(earlier), row)) != before
        assert earlier.any() and moved == (name != "length")  # which reads no event
    assert tied


# What is kept.


def code_bytes(name, n, d, layers, heads):
    """Bytes of one user's code in float32; a flag is one byte, a moment eight."""
    tokens, a, r = 1 + n, 32, 3
    last = 1 + min(n, r)
    return {
        "mean pooling": 4 * d,
        "length": 4 * d,
        "DIN": 4 * n * (d + a) + n,
        "concat": 4 * tokens * d + tokens,
        "concat, wide": 4 * tokens * d + tokens,
        "append-self": 4 * tokens * d + tokens,
        "append-causal": 8 * layers * tokens * d + tokens,
        "append-cross": 8 * layers * tokens * d + tokens,
        "append-cross, causal": 8 * layers * tokens * d + tokens,
        "two-tower": 4 * d,
        "STCA": 8 * layers * tokens * d + tokens,
        "HSTU": n * (8 * layers * d + 1 + 8) + 8,
        "LIME-MHA": 4 * (r * d + r * d + r * heads),  # links, what they read, its log
        "LIME-sum": 4 * (r * d + r * d) + 8,  # links, sums, count
        "LIME-XOR, one block": 4 * (r * d + r * d) + 8 * r,  # links, sums, count
        "LIME-XOR, two blocks": 4 * r * d,
        "LIME-XOR": 4 * r * d,
        "truncated MHA": 8 * last * d + last,
        "LREA": 8 * r * d,
    }[name]


@every_encoder
@pytest.mark.parametrize("d, layers, heads", [(8, 1, 1), (8, 3, 4), (12, 2, 2)])
@pytest.mark.parametrize("b, n", [(1, 0), (1, 5), (3, 4)])
def test_the_bytes_of_a_code_are_known(
    make_model, draw_request, name, d, layers, heads, b, n
):
    """In N, d and l; heads cut d into pieces; only a running softmax counts them."""
    request = draw_request(0, b=b, n=n, m=1, full=True)
    model = make_model(name, d, layers, heads)
    with torch.no_grad():
        code = model.encode_request(request).code
    assert nbytes(code) == b * code_bytes(name, n, d, layers, heads)


@every_encoder
def test_fuse_writes_into_no_code(ranker, draw_request, name):
    model, request = ranker(name, 2).float32, draw_request(3, b=2, n=5, m=3)
    with torch.no_grad():
        known = model.encode_request(request)
        items = model.encode_items(request.candidates)
        kept = []
        for side in (known, items):
            side.map(lambda t: kept.append((t, t.clone())))
        model.fuse(items, known)
    assert len(kept) >= 4
    assert all(torch.equal(now, before) for now, before in kept)


@every_encoder
def test_a_catalogue_encoded_once_serves_every_request(
    world, ranker, draw_request, assert_same, name
):
    request = draw_request(5, b=3, n=6, m=4)

    def from_catalogue(model):
        catalogue = model.encode_items(torch.arange(world.log.n_items))
        return model.fuse(catalogue[request.candidates], model.encode_request(request))

    assert_same(from_catalogue, lambda model: model(request), ranker(name, 2))


@every_encoder
def test_requests_may_share_their_candidates(ranker, draw_request, assert_same, name):
    request = draw_request(6, b=3, n=6, m=4)
    shared = request.candidates[0]
    request = replace(request, candidates=shared.expand(3, -1))

    def shared_items(model):
        return model.fuse(model.encode_items(shared), model.encode_request(request))

    assert_same(shared_items, lambda model: model(request), ranker(name, 2))


# Dropout.


@pytest.mark.parametrize("name", [*TRANSFORMERS, "STCA", "HSTU", *LOW_RANK])
def test_dropout_is_on_in_training_and_off_in_serving(make_model, draw_request, name):
    request = draw_request(4, b=3, n=6, m=4, full=True)
    model, without = make_model(name, dropout=0.5), make_model(name, dropout=0.0)
    assert torch.equal(model(request), model(request))
    assert torch.equal(model(request), without(request))
    model.train(), without.train()
    assert not torch.equal(model(request), model(request))
    assert torch.equal(without(request), without(request))


@pytest.mark.parametrize("name", [*TRANSFORMERS, "STCA", "HSTU", *LOW_RANK])
def test_events_are_dropped_before_anybody_reads_them(make_model, draw_request, name):
    """All of them dropped, and nothing else: what they were makes no difference."""
    model = make_model(name, dropout=0.0).train()
    model.encoder.dropout.p = 1.0
    request, vectors = draw_request(4, b=3, n=6, m=4, full=True), torch.randn(3, 6, 8)
    user = model.embeddings.users(request.user)
    events = model.events(request)

    def links_or_keys(vectors):
        code = model.encoder.encode_history(replace(events, vectors=vectors), user)
        return tree_leaves(code)

    for before, after in zip(
        links_or_keys(events.vectors), links_or_keys(vectors), strict=True
    ):
        assert torch.equal(before, after)


# Programs: a ranker as one graph, in which nothing looks at a number to go on.

POSITIONS = ["none", "absolute", "recency", "time gap"]
# Every encoder once; the schemes of positions, which know no encoder, in turns.
MODELS = [
    (name, POSITIONS[number % 4]) for number, name in enumerate([*ENCODERS, "naive"])
]


@pytest.mark.parametrize("name, positions", MODELS)
@torch.no_grad()
def test_a_ranker_exports_for_any_number_of_candidates(
    ranker, draw_request, name, positions
):
    model = ranker(name, positions=positions).float32
    request, other = (draw_request(0, b=2, n=5, m=m) for m in (3, 7))
    shapes = [None, None, {1: Dim.DYNAMIC}, [None] * 4]
    program = torch.export.export(model, (request,), dynamic_shapes=(shapes,))
    torch.testing.assert_close(program.module()(other), model(other))


@pytest.mark.parametrize("name, positions", MODELS)
@torch.no_grad()
def test_a_ranker_compiles_without_a_break(ranker, draw_request, name, positions):
    torch.compiler.reset()
    model, request = ranker(name, positions=positions).float32, draw_request(0, 2, 5, 3)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(request), model(request))


@torch.no_grad()
def test_a_ranker_exports_strictly(ranker, draw_request):
    """By the tracer of `torch.compile`, which then takes requests apart itself."""
    model, request = ranker("two-tower").float32, draw_request(0, 2, 5, 3)
    program = torch.export.export(model, (request,), strict=True)
    torch.testing.assert_close(program.module()(request), model(request))


# The formulas.


def test_mean_pooling_is_the_mean_of_what_is_there():
    history = torch.randn(3, 4, 8)
    mask = torch.tensor([[0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    pooled = MeanPooling()(Events(history, mask), None, torch.randn(3, 2, 8))
    expected = [history[0, 1:].mean(0), history[1, 0], torch.zeros(8)]
    torch.testing.assert_close(pooled, torch.stack(expected)[:, None].expand(3, 2, 8))


def test_length_only_looks_up_how_many_events_there_are_and_reads_none_of_them():
    """Up to `exact` by one, then in buckets that begin 0, 1, 3, 7 .. events later."""
    encoder, n = LengthOnly(8, exact=3), 12
    mask = torch.arange(n) < torch.arange(n + 1)[:, None]  # 0 .. 12 events
    row = [0, 1, 2, 3, 4, 4, 5, 5, 5, 5, 6, 6, 6]
    for vectors in torch.randn(2, n + 1, n, 8):
        h = encoder(Events(vectors, mask), None, torch.randn(n + 1, 2, 8))
        assert torch.equal(h, encoder.table.weight[row][:, None].expand(-1, 2, 8))
    visible = torch.arange(n + 1)[None]  # the longest, each prefix a candidate's
    code = encoder.encode_history(Events(vectors[-1:], mask[-1:], visible), None)
    assert torch.equal(code[0], encoder.table.weight[row])
    years = Events(torch.zeros(1, 1, 8).expand(1, 2**10, 8), mask.new_ones(1, 2**10))
    assert torch.equal(
        encoder.encode_history(years, None)[0, 0], encoder.table.weight[12]
    )
    assert len(encoder.table.weight) == 3 + BUCKETS  # which end at 2^25 events


def test_din_is_its_formula():
    """h = 1/N sum_j w . relu(W [H_j; C; H_j * C]) H_j, the difference inside W."""
    encoder, history, item = DIN(8, hidden=5), torch.randn(1, 3, 8), torch.randn(8)
    mask = torch.tensor([[True, True, False]])
    expected = torch.zeros(8)
    for event in history[0, :2]:
        hidden = encoder.event(event) + encoder.candidate(item)
        hidden = torch.relu(hidden + encoder.product(event * item))
        expected = expected + encoder.weight(hidden) * event / 2
    got = encoder(Events(history, mask), None, item.expand(1, 1, 8))
    torch.testing.assert_close(got[0, 0], expected)


@pytest.mark.parametrize("m", [1, 3, 50])
def test_din_divides_by_the_events_whatever_the_number_of_candidates(m):
    encoder, history = DIN(8), torch.randn(2, 4, 8)
    torch.nn.init.zeros_(encoder.weight.weight)
    torch.nn.init.ones_(encoder.weight.bias)  # a_j = 1, so h is the mean event
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0]]).bool()
    h = encoder(Events(history, mask), None, torch.randn(2, m, 8))
    expected = torch.stack([history[0].mean(0), history[1, 1:3].mean(0)])
    torch.testing.assert_close(h, expected[:, None].expand(2, m, 8))


def test_a_two_tower_user_is_the_last_token_whatever_the_candidate(ranker):
    encoder, history = ranker("two-tower").float32.encoder, torch.randn(2, 4, 8)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()
    h = encoder(Events(history, mask), None, torch.randn(2, 5, 8))
    assert torch.equal(h, h[:, :1].expand(2, 5, 8))
    for b, events in enumerate([history[:1, :3], history[1:, :2]]):
        begun = encoder.begin(Events(events, torch.ones(events.shape[:2]).bool()))
        last = encoder.run(begun.vectors, None, causal=True)[0, -1]
        torch.testing.assert_close(h[b, 0], last)


def test_of_the_drawn_histories_some_are_padded_and_some_are_empty(draw_history):
    padded = ~draw_history(np.random.default_rng(0), 50, 4).mask
    assert padded[:, -1].any() and padded.all(1).any() and not padded.any(1).all()
