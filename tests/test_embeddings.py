"""Embeddings against loops. Integers make float arithmetic exact: no tolerance."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys_edu.batch import impressions_at
from recsys_edu.data import EventCoding, Features, Histories
from recsys_edu.embeddings import Embeddings, FeatureEmbedding, pairwise_dots

SEEDS = st.integers(0, 2**16)
# At least one sparse feature a side: a log always has one.
SHAPES = st.fixed_dictionaries(
    dict(dense=st.integers(0, 3), plain=st.integers(0, 2), bags=st.integers(0, 2))
).filter(lambda shape: shape["plain"] + shape["bags"] > 0)


def with_integers(module, rng):
    """The same module with weights in -4..4, and zeros where a bag's padding is."""
    for parameter in module.parameters():
        values = rng.integers(-4, 5, tuple(parameter.shape))
        parameter.data = torch.tensor(values, dtype=torch.float32)
    for table in module.modules():
        if isinstance(table, torch.nn.Embedding) and table.padding_idx is not None:
            table.weight.data[table.padding_idx] = 0
    return module


def integer_features(make_features, rng, n, shape):
    features = make_features(rng, n, **shape)
    dense = rng.integers(-3, 4, features.dense.shape).astype(np.float32)
    return dataclasses.replace(features, dense=dense)


@given(
    rows=st.integers(1, 3),
    n=st.integers(0, 5),
    d=st.integers(1, 4),
    seed=SEEDS,
)
def test_pairwise_dots_by_loop(rows, n, d, seed):
    vectors = np.random.default_rng(seed).integers(-9, 10, (rows, n, d)).astype(float)
    expected = [
        [sum(v[i] * v[j]) for i in range(n) for j in range(i + 1, n)] for v in vectors
    ]
    assert pairwise_dots(torch.tensor(vectors)).tolist() == expected


def test_pairwise_dots_by_hand():
    vectors = torch.tensor([[1.0, 0.0], [2.0, 3.0], [0.0, 10.0]])
    assert pairwise_dots(vectors).tolist() == [2.0, 0.0, 30.0]  # 01, 02, 12
    assert pairwise_dots(vectors[:1]).shape == (0,)


def embed_by_loop(module, features, row):
    """The S vectors of one row of features, [S, d]."""
    vectors = []
    if features.dense_names:
        W1, b1, W2, b2 = (p.detach().numpy() for p in module.dense_mlp.parameters())
        hidden = np.maximum(0, W1 @ features.dense[row] + b1)
        vectors.append(W2 @ hidden + b2)
    for name, values in features.sparse.items():
        table = module.tables[name].weight.detach().numpy()
        if values.ndim == 1:
            vectors.append(table[values[row]])
        else:
            members = [table[value] for value in values[row] if value != 0]
            total = sum(members, np.zeros_like(table[0]))
            vectors.append(total / max(1, len(members)))
    return np.stack(vectors)


@given(shape=SHAPES, n=st.integers(1, 5), d=st.integers(1, 4), seed=SEEDS)
def test_feature_embedding_equals_a_loop(make_features, shape, n, d, seed):
    rng = np.random.default_rng(seed)
    features = integer_features(make_features, rng, n, shape)
    module = with_integers(FeatureEmbedding(features, d), rng)
    S = sum(shape.values()) - shape["dense"] + (shape["dense"] > 0)
    assert module.n_vectors == S
    index = torch.from_numpy(rng.integers(0, n, (2, 3)))
    vectors = module(index)
    assert vectors.shape == (2, 3, S, d)
    for at in np.ndindex(2, 3):
        expected = embed_by_loop(module, features, index[at])
        assert vectors[at].tolist() == expected.tolist()
    assert module(index[0, 0]).tolist() == vectors[0, 0].tolist()
    own = module.own(vectors)
    assert own.shape == (2, 3, module.n_own)
    expected = torch.cat([pairwise_dots(vectors), vectors[..., 0, :]], dim=-1)
    assert torch.equal(own, expected)


def of_codes(**sparse):
    """Features of codes, in tables that are as large as these codes ask for."""
    n = len(next(iter(sparse.values())))
    rows = {name: int(codes.max()) + 1 for name, codes in sparse.items()}
    return Features(np.zeros((n, 0), np.float32), (), sparse, rows)


def bag_features(values):
    return of_codes(bag=np.array(values))


def test_a_bag_is_the_mean_of_its_members():
    module = FeatureEmbedding(bag_features([[1, 3, 0], [2, 0, 0], [0, 0, 0]]), 2)
    table = module.tables["bag"].weight.detach()
    vectors = module(torch.arange(3))[:, 0]
    assert torch.equal(vectors[0], (table[1] + table[3]) / 2)
    assert torch.equal(vectors[1], table[2])
    assert vectors[2].tolist() == [0.0, 0.0]


def test_an_empty_bag_has_a_finite_gradient():
    module = FeatureEmbedding(bag_features([[0, 0], [1, 0]]), 2)
    module(torch.tensor([0, 0, 1])).sum().backward()
    assert module.tables["bag"].weight.grad.tolist() == [[0.0, 0.0], [1.0, 1.0]]


def test_padding_of_a_bag_never_trains_and_an_unknown_value_does():
    sparse = {"bag": np.array([[0, 1], [0, 0]]), "plain": np.array([0, 1])}
    module = FeatureEmbedding(of_codes(**sparse), 2)
    before = {name: t.weight.detach().clone() for name, t in module.tables.items()}
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=3.0)
    for _ in range(3):
        optimizer.zero_grad()
        (module(torch.arange(2)) - 1).square().sum().backward()
        optimizer.step()
    assert module.tables["bag"].weight[0].tolist() == [0.0, 0.0]
    assert not torch.equal(module.tables["bag"].weight[1], before["bag"][1])
    assert not torch.equal(module.tables["plain"].weight[0], before["plain"][0])


def test_features_are_no_weights(make_features):
    rng = np.random.default_rng(0)
    module = FeatureEmbedding(make_features(rng, 5, dense=2, plain=1, bags=1), 3)
    weights = {name for name, _ in module.named_parameters()}
    assert set(module.state_dict()) == weights
    assert not list(module.buffers())
    assert copy.deepcopy(module).values is module.values
    double = copy.deepcopy(module).double()
    assert double.values(torch.tensor([1])).dense.dtype == torch.float64
    assert module.values(torch.tensor([1])).dense.dtype == torch.float32
    assert module.to("meta")(torch.zeros(2, 1, device="meta").long()).is_meta


@pytest.mark.parametrize("name", ["type", "keys", "items", "train", "d", "a b", "a.b"])
def test_a_feature_may_have_any_column_s_name(name):
    features = of_codes(**{name: np.array([1, 2])})
    module = FeatureEmbedding(features, 2)
    assert list(module.tables) == [name]
    assert module(torch.tensor([1])).shape == (1, 1, 2)


def test_what_was_never_seen_says_nothing():
    module = FeatureEmbedding(
        of_codes(plain=np.array([1, 2]), bag=np.array([[1], [2]])), 2
    )
    assert module(torch.tensor([-1])).tolist() == [[[0.0, 0.0], [0.0, 0.0]]]


@pytest.mark.parametrize("index", [-2, 2, 2**40])
def test_an_index_of_nobody_is_refused(index):
    module = FeatureEmbedding(of_codes(plain=np.array([1, 2])), 2)
    with pytest.raises(IndexError):
        module(torch.tensor([index]))


def test_a_side_without_features_is_one_vector():
    module = FeatureEmbedding(of_codes(only=np.array([1, 2])).without("only"), 3)
    vectors = module(torch.tensor([[0, 1, -1]]))
    assert vectors.shape == (1, 3, 1, 3) and module.n_vectors == 1
    assert torch.equal(vectors[0, 0], vectors[0, 2])
    vectors.sum().backward()
    assert module.everybody.grad.tolist() == [3.0, 3.0, 3.0]


def test_tables_may_come_from_outside(embeddings, make_features):
    users = make_features(np.random.default_rng(0), 3)
    table = torch.nn.Embedding(4, 4)
    made = Embeddings(users, users, None, 4, tables={"items.plain_0": table})
    assert made.items.tables["plain_0"] is table is not made.users.tables["plain_0"]
    code = torch.tensor(users.sparse["plain_0"][1])
    assert torch.equal(made.items(torch.tensor(1))[-1], table(code))
    with pytest.raises(ValueError, match=r"items\.no"):
        Embeddings(users, users, None, 4, tables={"items.no": table})


def test_a_ranker_without_history_has_no_table_of_actions(make_features):
    users = make_features(np.random.default_rng(0), 3)
    made = Embeddings(users, users, None, 4)
    assert not [name for name, _ in made.named_parameters() if "action" in name]
    with pytest.raises(ValueError, match="know no actions"):
        made.events(None)


def test_ids_start_near_no_effect():
    """A dot of two vectors, d terms of variance s^4, starts with spread sqrt(d) s^2."""
    d = 16
    features = of_codes(id=np.arange(2_000) + 1)
    torch.manual_seed(0)
    vectors = FeatureEmbedding(features, d)(torch.arange(2_000))[:, 0]
    dots = (vectors[::2] * vectors[1::2]).sum(-1)
    spread = d**0.5 * (d**-0.5 / 4) ** 2
    # Six standard errors of a standard deviation from 1,000 draws.
    assert abs(dots.std().item() / spread - 1) < 6 / (2 * 1_000) ** 0.5


@pytest.fixture(scope="module")
def embeddings(make_features):
    rng = np.random.default_rng(0)
    users = make_features(rng, 3, dense=2)
    items = integer_features(make_features, rng, 9, dict(dense=2, plain=1, bags=0))
    return with_integers(
        Embeddings(users, items, events=EventCoding(tuple(range(5))), d=4), rng
    )


def test_an_event_is_what_was_acted_on_plus_what_was_done(make_log, embeddings):
    log = make_log([(e % 3, e // 2) for e in range(9)])
    rows = np.arange(9)
    history = impressions_at(log, Histories.from_log(log), rows, 3).request.history
    events = embeddings.events(history)
    assert events.shape == (*history.item.shape, 4)
    for at in zip(*np.nonzero(history.mask.numpy()), strict=True):
        vectors = embeddings.items(history.item[at])
        expected = sum(vectors) + embeddings.actions.weight[1 + history.action[at]]
        assert torch.equal(events[at], expected)


def test_users_and_items_have_their_own_tables(embeddings):
    assert len(embeddings.users.values) == 3
    assert len(embeddings.items.values) == 9
    assert embeddings.d == 4
