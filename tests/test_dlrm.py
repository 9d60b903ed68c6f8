"""The split DLRM against the classic one: a row for each (user, candidate), in fp64."""

import dataclasses
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys_edu.batch import History, Request
from recsys_edu.data import EventCoding
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings
from recsys_edu.encoders.base import Events, HistoryEncoder

N_USERS, N_ITEMS, N_ACTIONS = 4, 7, 3

SIDES = st.fixed_dictionaries(
    dict(dense=st.integers(0, 2), plain=st.integers(0, 2), bags=st.integers(0, 1))
).filter(lambda side: side["plain"] + side["bags"] > 0)
CASES = st.fixed_dictionaries(
    dict(
        users=SIDES,
        items=SIDES,
        d=st.integers(1, 5),
        hidden=st.lists(st.integers(1, 6), min_size=1, max_size=2),
        encoder=st.booleans(),
        B=st.integers(1, 3),
        M=st.integers(0, 4),
        longest=st.integers(0, 5),
        seed=st.integers(0, 2**16),
    )
)
SIDE = dict(dense=2, plain=2, bags=1)
LARGE = dict(users=SIDE, items=SIDE, d=4, hidden=[8, 5], B=3, M=6, longest=5, seed=0)


@pytest.fixture(scope="module")
def make_case(make_features, mean_pooling):
    """A function: sizes -> a model with random weights, and a random request."""

    def make(*, users, items, d, hidden, encoder, B, M, longest, seed):
        rng = np.random.default_rng(seed)
        embeddings = Embeddings(
            make_features(rng, N_USERS, **users),
            make_features(rng, N_ITEMS, **items),
            EventCoding(tuple(range(N_ACTIONS))),
            d,
        )
        model = DLRM(embeddings, mean_pooling(d) if encoder else None, hidden=hidden)
        for parameter in model.parameters():
            values = rng.normal(scale=0.5, size=tuple(parameter.shape))
            parameter.data = torch.tensor(values, dtype=torch.float32)
        for table in model.modules():
            if isinstance(table, torch.nn.Embedding) and table.padding_idx is not None:
                table.weight.data[table.padding_idx] = 0

        def draw(end, *shape):
            return torch.from_numpy(rng.integers(0, end, shape))

        length = draw(longest + 1, B, 1)
        mask = torch.arange(longest) < length
        history = History(
            item=draw(N_ITEMS, B, longest),
            action=draw(N_ACTIONS, B, longest),
            timestamp=draw(1_000, B, longest),
            mask=mask,
        )
        return model, Request(
            draw(N_USERS, B), draw(2_000, B, 1), draw(N_ITEMS, B, M), history
        )

    return make


def classic(model, request, dtype, absolute=False):
    """Logits [B, M] by loops: every pair of vectors dotted, one first layer.

    With `absolute`, all weights and features are made positive: the result bounds
    every sum of terms that the logit is made of, and so scales their rounding.
    """

    def array(tensor):
        values = tensor.detach().numpy().astype(dtype)
        return np.abs(values) if absolute else values

    def embed(side, row):
        vectors = []
        if side.dense_mlp is not None:
            W1, b1, W2, b2 = map(array, side.dense_mlp.parameters())
            x = array(side.values(row).dense)
            vectors.append(W2 @ np.maximum(0, W1 @ x + b1) + b2)
        for name, table in side.tables.items():
            value = side.values(row).sparse[name].numpy()
            rows = array(table.weight)
            if value.ndim == 0:
                vectors.append(rows[value])
            else:
                members = rows[value[value != 0]]
                vectors.append(members.sum(0) / dtype(max(1, len(members))))
        return np.stack(vectors)

    embeddings, encoder, top = model.embeddings, model.encoder, model.top

    def pooled(user, item, b):
        """The test's encoder, event by event."""
        known = [
            embed(embeddings.items, request.history.item[b, n]).sum(0)
            + array(embeddings.actions.weight)[1 + request.history.action[b, n]]
            for n in np.flatnonzero(request.history.mask[b].numpy())
        ]
        mean = sum(known, np.zeros_like(user[0])) / dtype(max(1, len(known)))
        A, B, C = map(array, encoder.parameters())
        return (A @ item.sum(0)) * (B @ mean + C @ user.mean(0))

    # Which column of the classic first layer stands where in the split one.
    S_u, S_t, d = embeddings.users.n_vectors, embeddings.items.n_vectors, embeddings.d
    F = S_u + S_t + (encoder is not None)
    user, item, h = range(S_u), range(S_u, S_u + S_t), range(S_u + S_t, F)

    def as_is(name):
        return [(name, k) for k in range(d)]

    split = [*combinations(user, 2), *as_is("user")]
    split += [*combinations(item, 2), *as_is("item")]
    split += [(j, i) for i in item for j in user]
    split += [(i, k) for k in h for i in (*user, *item)] + as_is("h") * len(h)
    order = [*combinations(range(F), 2), *as_is("user"), *as_is("item")]
    order += as_is("h") * len(h)
    parts = [array(part.weight) for part in (top.user, top.item, top.cross)]
    column = dict(zip(split, np.concatenate(parts, axis=1).T, strict=True))
    W = np.stack([column[key] for key in order], axis=1)

    logits = np.zeros(request.candidates.shape, dtype)
    for b, m in np.ndindex(*logits.shape):
        u = embed(embeddings.users, request.user[b])
        t = embed(embeddings.items, request.candidates[b, m])
        vectors, rest = [*u, *t], [u[0], t[0]]
        if encoder is not None:
            vectors.append(pooled(u, t, b))
            rest.append(vectors[-1])
        dots = np.stack(vectors) @ np.stack(vectors).T
        pairs = [dots[i, j] for i, j in combinations(range(F), 2)]
        x = W @ np.concatenate([np.array(pairs, dtype), *rest]) + array(top.user.bias)
        for layer in top.rest:
            if isinstance(layer, torch.nn.Linear):
                x = array(layer.weight) @ np.maximum(0, x) + array(layer.bias)
        logits[b, m] = x.item()
    return logits


def oracle_of(model, request):
    """Logits [B, M] in fp64, and how far from them fp32 may be.

    Twice the error of the classic form in fp32, and two roundings of the largest sum
    for the cases where that form is right by luck.
    """
    oracle = classic(model, request, np.float64)
    error = np.abs(classic(model, request, np.float32) - oracle).max(initial=0)
    scale = classic(model, request, np.float64, absolute=True).max(initial=0)
    return oracle, 2 * error + 2 * np.finfo(np.float32).eps * scale


def assert_within(budget, logits, oracle):
    assert logits.shape == oracle.shape
    assert np.abs(logits.detach().numpy() - oracle).max(initial=0) <= budget


@given(CASES)
def test_the_split_model_is_the_classic_one(make_case, case):
    model, request = make_case(**case)
    oracle, budget = oracle_of(model, request)
    assert_within(budget, model(request), oracle)


@given(CASES)
def test_a_catalogue_encoded_once_serves_every_request(make_case, case):
    model, request = make_case(**case)
    oracle, budget = oracle_of(model, request)
    catalogue = model.encode_items(torch.arange(N_ITEMS))
    kept = model.encode_request(request)
    assert_within(budget, model.fuse(catalogue[request.candidates], kept), oracle)
    everything = dataclasses.replace(
        request, candidates=torch.arange(N_ITEMS).expand(case["B"], -1)
    )
    oracle, budget = oracle_of(model, everything)
    assert_within(budget, model.fuse(catalogue, kept), oracle)  # [M, ...] is shared


@given(CASES.filter(lambda case: case["M"] > 0), st.data())
def test_no_candidate_reads_another(make_case, case, data):
    """Any subset, in any order, with repetitions, scores the same."""
    model, request = make_case(**case)
    oracle, budget = oracle_of(model, request)
    pick = data.draw(st.lists(st.integers(0, case["M"] - 1), max_size=6))
    some = dataclasses.replace(request, candidates=request.candidates[:, pick])
    assert_within(budget, model(some), oracle[:, pick])


@given(CASES, st.integers(1, 4))
def test_padding_changes_no_score(make_case, case, extra):
    model, request = make_case(**case)
    oracle, budget = oracle_of(model, request)
    rng = np.random.default_rng(case["seed"])
    garbage = torch.from_numpy(rng.integers(0, N_ACTIONS, (case["B"], extra)))
    unseen = torch.zeros_like(garbage, dtype=torch.bool)
    before = request.history
    after = History(
        item=torch.cat([before.item, garbage], 1),
        action=torch.cat([before.action, garbage], 1),
        timestamp=torch.cat([before.timestamp, garbage], 1),
        mask=torch.cat([before.mask, unseen], 1),
    )
    padded = dataclasses.replace(request, history=after)
    assert_within(budget, model(padded), oracle)
    for b in range(case["B"]):
        row = slice(b, b + 1)
        alone = request[row]
        length = int(alone.history.mask.sum())
        trimmed = alone.history.map(lambda tensor, end=length: tensor[:, :end])
        alone = dataclasses.replace(alone, history=trimmed)
        assert_within(budget, model(alone), oracle[row])


@given(CASES)
def test_padding_changes_no_gradient(make_case, case):
    """What stands under the mask gets no gradient: its item may be anything."""
    model, request = make_case(**case | dict(encoder=True))
    history = request.history
    events = model.embeddings.events(history).detach().requires_grad_()
    users = model.embeddings.users(request.user)
    code = model.encoder.encode_history(Events(events, history.mask), users)
    code.sum().backward()
    assert (events.grad[~history.mask] == 0).all()


@pytest.mark.parametrize("encoder", [False, True])
def test_no_candidate_at_all_is_a_request(make_case, encoder):
    model, request = make_case(**LARGE | dict(encoder=encoder, M=0))
    assert model(request).shape == (3, 0)


def test_an_empty_history_has_a_score_and_gradients(make_case):
    model, request = make_case(**LARGE | dict(encoder=True, longest=0))
    assert request.history.item.shape == (3, 0)
    oracle, budget = oracle_of(model, request)
    logits = model(request)
    assert_within(budget, logits, oracle)
    logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("encoder", [False, True])
def test_each_clock_reads_what_it_knows(make_case, encoder):
    model, request = make_case(**LARGE | dict(encoder=encoder))
    expected = model(request)
    # Request clock: the candidates are not there yet.
    none = request.candidates[:, :0]
    kept = model.encode_request(dataclasses.replace(request, candidates=none))
    # Item clock: there is no user.
    users, model.embeddings.users = model.embeddings.users, None
    catalogue = model.encode_items(torch.arange(N_ITEMS))
    # Candidate clock: the tables are gone, the codes are all there is.
    embeddings, model.embeddings = model.embeddings, None
    logits = model.fuse(catalogue[request.candidates], kept)
    embeddings.users, model.embeddings = users, embeddings
    _, budget = oracle_of(model, request)
    assert (logits - expected).abs().max() <= 2 * budget


def test_a_naive_dlrm_reads_no_history(make_case):
    model, request = make_case(**LARGE | dict(encoder=False))
    none = request.history.map(lambda t: t[:, :0])
    without = dataclasses.replace(request, history=none)
    assert torch.equal(model(without), model(request))


def test_the_history_counts(make_case):
    model, request = make_case(**LARGE | dict(encoder=True))
    other = dataclasses.replace(
        request.history, action=(request.history.action + 1) % N_ACTIONS
    )
    changed = model(dataclasses.replace(request, history=other))
    seen = request.history.mask.any(1)
    assert seen.any()
    assert (changed != model(request))[seen].any(1).all()


@pytest.mark.parametrize("encoder", [False, True])
def test_every_part_learns(make_case, encoder):
    model, request = make_case(**LARGE | dict(encoder=encoder, B=3))
    model(request).sum().backward()
    still = {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    }
    assert still == (set() if encoder else {"embeddings.actions.weight"})


@pytest.mark.parametrize("encoder", [False, True])
def test_gradients_are_those_of_the_scores(make_case, encoder):
    """Against finite differences in fp64: nothing on the way is cut off."""
    # Rows of padding have no gradient by intent, so there are no bags here.
    sides = dict(users=SIDE | dict(bags=0), items=SIDE | dict(bags=0))
    model, request = make_case(**LARGE | sides | dict(encoder=encoder))
    model = model.double()
    names, values = zip(*model.named_parameters(), strict=True)

    def logits(*values):
        weights = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, weights, (request,))

    assert torch.autograd.gradcheck(logits, values, fast_mode=True)


@pytest.mark.parametrize("hidden", [(6,), (6, 5), (6, 5, 4)])
def test_the_top_mlp_is_as_deep_as_asked(make_case, hidden):
    model, _ = make_case(**LARGE | dict(encoder=False, hidden=hidden))
    layers = [m for m in model.top.rest if isinstance(m, torch.nn.Linear)]
    widths = [model.top.user.out_features, *(m.out_features for m in layers)]
    assert widths == [*hidden, 1]


def test_an_encoder_has_three_methods():
    class Half(HistoryEncoder):
        def encode_items(self, items):
            return items

    with pytest.raises(TypeError, match=r"encode_history.*fuse"):
        Half()


def test_an_encoder_s_forward_is_its_three_methods(make_case):
    model, request = make_case(**LARGE | dict(encoder=True))
    embeddings, encoder = model.embeddings, model.encoder
    events = Events(embeddings.events(request.history), request.history.mask)
    context = embeddings.users(request.user)
    candidates = embeddings.items(request.candidates).sum(-2)
    h = encoder(events, context, candidates)
    assert h.shape == (3, 6, 4)
    code = encoder.encode_history(events, context)
    assert torch.equal(h, encoder.fuse(encoder.encode_items(candidates), code))


def test_with_another_encoder_a_ranker_shares_all_other_weights(
    make_case, mean_pooling
):
    """The objects, not their values: what trains one trains the other."""
    model, request = make_case(**LARGE | dict(encoder=True))
    other = model.with_encoder(mean_pooling(4))
    for name, weight in model.named_parameters():
        assert (other.get_parameter(name) is weight) != name.startswith("encoder.")
    assert other.embeddings.items.values is model.embeddings.items.values
    assert not torch.equal(other(request), model(request))
    again = other.with_encoder(model.encoder)
    assert torch.equal(again(request), model(request))
