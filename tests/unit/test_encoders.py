"""What every encoder promises, over random shapes: DESIGN's invariants 1 to 4 and 6.

Budgets: the oracle runs in float64. A float32 form may miss it by twice what the naive
float32 form does, plus 64 roundings of the largest score, one for each operation on the
longest path from an embedding to a logit. In float64 that budget shrinks by 2^-29, the
ratio of the two unit roundoffs.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_edu.batch import History, Request, impressions_at, user_batches
from recsys_edu.data import Histories
from recsys_edu.data.synthetic import planted_world
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings
from recsys_edu.encoders.append import AppendEncoder, AppendSelfEncoder
from recsys_edu.encoders.concat import ConcatEncoder
from recsys_edu.encoders.pooling import MeanPooling
from recsys_edu.encoders.target_attention import DIN
from recsys_edu.encoders.two_tower import TwoTower
from recsys_edu.scoring.strategies import amortized, naive, single_pass
from recsys_edu.training import log_loss

D, HEADS = 8, 2
SIZE = dict(layers=2, heads=HEADS)
ENCODERS = {
    "mean pooling": MeanPooling,
    "DIN": lambda: DIN(D),
    "concat": lambda: ConcatEncoder(D, **SIZE),
    "append-self": lambda: AppendSelfEncoder(D, **SIZE),
    "append-causal": lambda: AppendEncoder(D, causal=True, reads_itself=True, **SIZE),
    "append-cross": lambda: AppendEncoder(D, causal=False, **SIZE),
    "append-cross, causal": lambda: AppendEncoder(D, causal=True, **SIZE),
    "two-tower": lambda: TwoTower(D, **SIZE),
}
PREFIXED = ["mean pooling", "DIN", "append-causal", "append-cross, causal", "two-tower"]
APPEND = ["append-causal", "append-cross", "append-cross, causal"]

SHAPES = st.fixed_dictionaries(
    dict(b=st.integers(1, 3), n=st.integers(0, 6), m=st.integers(1, 5)),
)
every_encoder = pytest.mark.parametrize("name", ENCODERS)
few = settings(max_examples=15, deadline=None)


@pytest.fixture(scope="module")
def world():
    return planted_world(seed=1, n_impressions=400, n_users=12, n_items=30)


@pytest.fixture(scope="module")
def models(world):
    """Name -> a ranker with random weights, in eval mode."""
    log = world.log
    torch.manual_seed(0)
    made = {}
    for name, encoder in ENCODERS.items():
        embeddings = Embeddings(log.users, log.items, log.n_actions, D)
        made[name] = DLRM(embeddings, encoder()).eval()
        for weight in made[name].parameters():
            torch.nn.init.normal_(weight, std=0.2)
    return made


def draw_request(world, seed, b, n, m):
    """B requests with ragged histories of up to n events, some of them empty."""
    rng = np.random.default_rng(seed)
    mask = torch.arange(n) < torch.from_numpy(rng.integers(0, n + 1, (b, 1)))

    def draw(end, *shape):
        return torch.from_numpy(rng.integers(0, end, shape))

    history = History(draw(30, b, n), draw(2, b, n), draw(99, b, n), mask)
    return Request(draw(12, b), draw(99, b), draw(30, b, m), history)


def assert_same(form, oracle, model, request):
    """``form`` scores as ``oracle`` does, in float32 and float64, within budget."""
    exact = oracle(model.double(), request)
    got64 = form(model, request)
    reference, got32 = oracle(model.float(), request), form(model, request)
    rounding = 64 * 2**-24 * exact.abs().max().clamp(min=1)
    budget = 2 * (reference - exact).abs().max() + rounding
    assert got32.shape == exact.shape == request.candidates.shape
    assert (got32 - exact).abs().max() <= budget
    assert (got64 - exact).abs().max() <= 2**-29 * budget


@every_encoder
@few
@given(shape=SHAPES, seed=st.integers(0, 99), micro_batch=st.integers(1, 6))
def test_amortized_scores_are_the_naive_ones(
    models, world, name, shape, seed, micro_batch
):
    request = draw_request(world, seed, **shape)
    assert_same(
        lambda model, r: amortized(model, r, micro_batch=micro_batch),
        naive,
        models[name],
        request,
    )


@pytest.mark.parametrize("name", APPEND)
@few
@given(shape=SHAPES, seed=st.integers(0, 99))
def test_one_masked_sequence_gives_the_naive_scores(models, world, name, shape, seed):
    assert_same(single_pass, naive, models[name], draw_request(world, seed, **shape))


@pytest.mark.parametrize("name", sorted(set(ENCODERS) - set(APPEND)))
def test_single_pass_is_refused_where_no_mask_makes_it(models, world, name):
    with pytest.raises(TypeError, match="has no single-pass form"):
        single_pass(models[name], draw_request(world, 0, b=1, n=3, m=2))


@every_encoder
@few
@given(shape=SHAPES, seed=st.integers(0, 99))
def test_a_score_ignores_the_other_candidates(models, world, name, shape, seed):
    request = draw_request(world, seed, **shape)
    order = torch.randperm(shape["m"], generator=torch.Generator().manual_seed(seed))
    some = order[: 1 + seed % shape["m"]]  # permuted and cut

    def alone(model, r):
        return model(r)

    def among_others(model, r):  # every candidate twice, in another company
        twice = replace(r, candidates=r.candidates.repeat(1, 2))
        return model(twice)[:, shape["m"] :][:, some]

    chosen = replace(request, candidates=request.candidates[:, some])
    assert_same(
        lambda model, _: among_others(model, request), alone, models[name], chosen
    )


@every_encoder
@few
@given(shape=SHAPES, seed=st.integers(0, 99), extra=st.integers(1, 4))
def test_padding_never_changes_a_score(models, world, name, shape, seed, extra):
    request = draw_request(world, seed, **shape)
    b = shape["b"]
    poison = torch.full((b, extra), 7)
    padded = History(
        *(
            torch.cat([getattr(request.history, field), poison], dim=1)
            for field in ("item", "action", "timestamp")
        ),
        mask=torch.cat([request.history.mask, torch.zeros(b, extra).bool()], dim=1),
    )
    padded.action[:, shape["n"] :] = 1  # an action that exists

    def with_padding(model, r):
        return model(replace(r, history=padded))

    def row_by_row(model, r):
        rows = []
        for row in range(b):
            length = int(r.history.mask[row].sum())
            history = r.history[row : row + 1].map(lambda t, n=length: t[:, :n])
            rows.append(
                model(
                    Request(
                        r.user[row : row + 1],
                        r.timestamp[row : row + 1],
                        r.candidates[row : row + 1],
                        history,
                    )
                )
            )
        return torch.cat(rows)

    assert_same(with_padding, row_by_row, models[name], request)


@every_encoder
def test_an_empty_history_is_valid_and_trains(models, world, name):
    request = draw_request(world, 0, b=2, n=0, m=3)
    model = models[name].float()
    scores = model(request)
    scores.sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert scores.isfinite().all() and all(g.isfinite().all() for g in grads)
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", PREFIXED)
def test_amortized_training_is_one_row_per_impression(models, world, name):
    """Invariant 6: the same loss and gradients, in float64, all users in one pass."""
    log, histories = world.log, Histories.from_log(world.log)
    rows = np.arange(len(log))[50:350]
    model = models[name].double()

    def loss_and_gradients(batches):
        model.zero_grad(set_to_none=True)
        total = 0.0
        for batch in batches:
            batch = replace(batch, label=batch.label.double())
            loss = log_loss(model(batch.request), batch) * (batch.row >= 0).sum()
            loss.backward()
            total += loss.item()
        return total, {
            k: p.grad for k, p in model.named_parameters() if p.grad is not None
        }

    by_user = loss_and_gradients(user_batches(log, histories, rows, max_tokens=300))
    by_row = loss_and_gradients(
        impressions_at(log, histories, rows[k : k + 1], len(log))
        for k in range(len(rows))
    )
    # 300 losses are added in another order: an error of 300 roundings of their sum.
    budget = len(rows) * 2**-52
    assert abs(by_user[0] - by_row[0]) <= budget * by_row[0]
    assert by_user[1].keys() == by_row[1].keys()
    scale = max(g.abs().max() for g in by_row[1].values())
    for key, gradient in by_row[1].items():
        assert (by_user[1][key] - gradient).abs().max() <= budget * scale, key
    model.zero_grad(set_to_none=True)
    model.float()


@pytest.mark.parametrize("name", sorted(set(ENCODERS) - set(PREFIXED)))
def test_an_encoder_without_prefixes_refuses_amortized_training(models, world, name):
    histories = Histories.from_log(world.log)
    [batch, *_] = user_batches(world.log, histories, np.arange(100), max_tokens=10**6)
    with pytest.raises(ValueError, match="one impression a row"):
        models[name].float()(batch.request)


@pytest.mark.parametrize("name", PREFIXED)
def test_a_candidate_never_reads_past_what_is_visible(models, world, name):
    """Invariant 4: rewriting the events that are not visible changes no score."""
    histories = Histories.from_log(world.log)
    model = models[name].float()
    for batch in user_batches(world.log, histories, np.arange(200), max_tokens=10**6):
        request = batch.request
        before = model(request)
        for m in range(request.candidates.shape[1]):
            late = (
                torch.arange(request.history.item.shape[1])
                >= request.visible[:, m : m + 1]
            )
            history = replace(
                request.history, item=torch.where(late, 29, request.history.item)
            )
            after = model(replace(request, history=history))
            assert torch.equal(after[:, m], before[:, m])


def test_mean_pooling_is_the_mean_of_what_is_there():
    history, mask = (
        torch.randn(3, 4, D),
        torch.tensor([[1, 1, 1, 0], [1] + [0] * 3, [0] * 4]),
    )
    pooled = MeanPooling()(history, mask.bool(), None, torch.randn(3, 2, D))
    expected = [history[0, :3].mean(0), history[1, 0], torch.zeros(D)]
    torch.testing.assert_close(pooled, torch.stack(expected)[:, None].expand(3, 2, D))


def test_din_is_its_formula():
    """h = 1/N sum_j w . relu(W [H_j; C; H_j * C]) H_j, the difference inside W."""
    encoder, history, item = DIN(D, hidden=5), torch.randn(1, 3, D), torch.randn(D)
    mask = torch.tensor([[True, True, False]])
    expected = torch.zeros(D)
    for event in history[0, :2]:
        hidden = encoder.event(event) + encoder.candidate(item)
        hidden = torch.relu(hidden + encoder.product(event * item))
        expected = expected + encoder.weight(hidden) * event / 2
    got = encoder(history, mask, None, item.expand(1, 1, D))
    torch.testing.assert_close(got[0, 0], expected)


@every_encoder
def test_a_catalogue_encoded_once_serves_every_request(models, world, name):
    request = draw_request(world, 5, b=3, n=6, m=4)

    def from_catalogue(model, r):
        catalogue = model.encode_items(torch.arange(world.log.n_items))
        return model.fuse(catalogue[r.candidates], model.encode_request(r))

    assert_same(from_catalogue, naive, models[name], request)


@every_encoder
def test_requests_may_share_their_candidates(models, world, name):
    request = draw_request(world, 6, b=3, n=6, m=4)
    shared = request.candidates[0]
    request = replace(request, candidates=shared.expand(3, -1))

    def shared_items(model, r):
        return model.fuse(model.encode_items(shared), model.encode_request(r))

    assert_same(shared_items, naive, models[name], request)
