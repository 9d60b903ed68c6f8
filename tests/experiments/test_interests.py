"""The experiment on several interests: its worlds, its judges, its record."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from recsys_edu.batch import user_batches
from recsys_edu.embeddings import Embeddings
from recsys_edu.experiments import interests, record


@pytest.fixture
def small(monkeypatch):
    """A small world, and one short training at one rate."""
    users = {"train": 60, "validation": 10, "test": 40}
    monkeypatch.setattr(interests, "USERS", users)
    monkeypatch.setattr(interests, "RATES", (4e-3,))
    interests.dataset.cache_clear()
    yield interests.dataset(0)
    interests.dataset.cache_clear()


def test_no_user_is_in_two_parts_and_all_that_is_judged_has_a_choice(small):
    log, split = small.world.log, small.split
    parts = [split.train, split.validation, split.test]
    users = [set(log.user[part]) for part in parts]
    assert [len(each) for each in users] == [60, 10, 40]
    assert len(set.union(*users)) == 110
    for part, m in zip(parts, interests.CANDIDATES.values(), strict=True):
        assert set(np.bincount(log.request[part])) == {0, m}
        assert small.histories.lengths(part).min() == 40


def test_an_expectation_never_passes_the_ceiling(small):
    """In these requests, not only on average over worlds."""
    whole = interests.assess(small.p, 0)
    rng = np.random.default_rng(0)
    for noise in (0.001, 0.1):
        guess = small.p + rng.normal(scale=noise, size=len(small.p))
        for count, metrics in interests.assess(guess, 0).items():
            assert all(metrics[name] <= whole[count][name] for name in metrics)


@pytest.mark.filterwarnings("ignore:the best validation NE")
def test_a_run_gives_a_row_for_each_number_of_interests(small, monkeypatch):
    short = interests.Model(interests.MODELS["mean pooling"].encoder, max_epochs=1)
    monkeypatch.setitem(interests.MODELS, "mean pooling", short)
    threads = torch.get_num_threads()
    try:
        for name in (interests.KNOWN, "ceiling of the history", "mean pooling"):
            rows = interests._run(name, 0)
            assert [tuple(row[c] for c in interests.KEY) for row in rows] == [
                (name, count, 0) for count in interests.INTERESTS
            ]
            assert all(0 < row[m] <= 1 for row in rows for m in ("auc", "ndcg", "hit"))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", interests.MODELS)
def test_models_read_topics_and_no_ids(small, name):
    model, log = interests.MODELS[name], small.world.log
    features = log.users.without("user_id"), log.items.without("item_id")
    ranker = interests.DLRM(
        Embeddings(*features, log.events, model.d), model.encoder(model.d)
    )
    assert set(ranker.embeddings.items.names) == {"topic"}
    assert ranker.embeddings.users.names == ()
    rows = small.split.train[:20]
    batch = next(iter(model.batching(log, small.histories, rows)))
    assert ranker(batch.request).shape == batch.label.shape


def test_nothing_reads_more_than_the_history(small):
    """Training's batches show each candidate the events before its request."""
    log, rows = small.world.log, small.split.train
    for batch in user_batches(log, small.histories, rows, max_tokens=2048):
        time = batch.request.history.timestamp
        seen = torch.arange(time.shape[1]) < batch.request.visible.unsqueeze(-1)
        real = (batch.row >= 0).unsqueeze(-1) & seen
        before = time.unsqueeze(1) < batch.request.timestamp.unsqueeze(-1)
        assert before[real].all()


def test_by_hand_a_sum_of_comparisons_is_a_sum_of_vectors(small):
    """And where topics do not interfere, both rank as the history's counts do."""
    world, rows, d = small.world, small.split.test, interests.D
    vectors = np.random.default_rng(0).normal(size=(interests.TOPICS, d))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    first, then = (interests.by_hand(name, 0) for name in interests.BY_HAND)
    topic = world.topic[world.log.item[rows]]
    for at in range(0, len(rows), 997):
        a, b = small.histories.start[rows[at]], small.histories.end[rows[at]]
        events = vectors[world.topic[small.histories.item[a:b]]]
        user = events.mean(0)
        assert abs(first[at] - vectors[topic[at]] @ user) < 1e-12
        cosine = events @ vectors[topic[at]]
        assert abs(then[at] - np.exp(20 * (cosine - 1)).mean()) < 1e-12


def test_to_compare_first_is_worth_more_the_more_interests(small):
    """With random vectors, nothing trained: the order of two steps is the cause."""
    whole = interests.assess(small.p, 0)
    first, then = (
        interests.assess(interests.by_hand(name, 0), 0) for name in interests.BY_HAND
    )
    lost = [whole[count]["ndcg"] - first[count]["ndcg"] for count in whole]
    assert lost == sorted(lost) and lost[0] < 0.02 and lost[-1] > 0.2
    for count in whole:
        assert whole[count]["ndcg"] - then[count]["ndcg"] < 0.02


def test_a_model_that_there_is_not_is_named():
    with pytest.raises(KeyError, match=r"no model \['BERT'\]; there are"):
        next(interests.runs(["BERT"]))


def test_what_is_done_is_not_run_again(monkeypatch):
    """A training whose rows are not all there is run as a whole."""

    class AtOnce(ThreadPoolExecutor):
        def __init__(self, *_, mp_context):
            super().__init__(1)

    def run(name, seed):
        keys = ((name, count, seed) for count in interests.INTERESTS)
        return [dict(zip(interests.KEY, key, strict=True)) for key in keys]

    monkeypatch.setattr(interests, "ProcessPoolExecutor", AtOnce)
    monkeypatch.setattr(interests, "_run", run)
    rows = [tuple(row.values()) for row in interests.runs(["DIN", "HSTU"])]
    assert len(set(rows)) == 2 * len(interests.INTERESTS) * len(interests.SEEDS)
    assert list(interests.runs(["DIN", "HSTU"], frozenset(rows))) == []
    all_but_one = frozenset(rows) - {("HSTU", 4, 1)}
    again = [
        tuple(row.values()) for row in interests.runs(["DIN", "HSTU"], all_but_one)
    ]
    assert again == [("HSTU", count, 1) for count in interests.INTERESTS]


# --- the record ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs():
    if not (record.FOLDER / "interests.json").exists():
        pytest.skip("not recorded yet")
    return record.load("interests").runs


def test_the_record_is_of_the_models_and_seeds_in_the_code(runs):
    expected = {
        (name, count, seed)
        for name in interests.NAMES
        for count in interests.INTERESTS
        for seed in interests.SEEDS
    }
    assert set(zip(runs.model, runs.interests, runs.seed, strict=True)) == expected


def test_one_vector_falls_behind_and_early_fusion_does_not(runs):
    lost = runs.pivot(index=["seed", "interests"], columns="model", values="ndcg")
    lost = -lost.sub(lost["ceiling of the history"], axis=0)
    assert (lost[list(interests.MODELS)] > -1e-5).all(axis=None)
    mean = lost.groupby("interests").mean()
    for name in ("mean pooling", "two-tower"):
        assert mean[name].is_monotonic_increasing and mean[name][8] > 0.2
        assert mean[f"{name}, d = 64"][8] < mean[name][8]
    for name in ("DIN", "append-cross, causal", "concat"):
        assert mean[name].max() < 0.05
    links = [mean[f"LIME-MHA, r = {r}"][8] for r in (2, 8, 16)]
    assert links == sorted(links, reverse=True)
