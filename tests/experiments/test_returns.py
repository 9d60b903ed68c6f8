"""Interest that returns: what truncation cannot know, and what links need not lose."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_edu.batch import batches, user_batches
from recsys_edu.data import Histories
from recsys_edu.data.synthetic import planted_world
from recsys_edu.encoders.lime import LimeMHA
from recsys_edu.experiments import record, returns
from recsys_edu.metrics import expected_auc
from recsys_edu.training import score_rows

ALIKE = dict(quality=0.0, rho=0.0)


def small_world(seed=0, n_topics=3, dwell=4, n_impressions=200, n_users=3, **options):
    """Few users with many events each; all items of a topic are alike."""
    sizes = dict(n_impressions=n_impressions, n_users=n_users, n_items=200)
    return planted_world(
        seed=seed, n_topics=n_topics, dwell=dwell, **sizes, **ALIKE | options
    )


def known(world):
    """(clicks, skips) among each row's earlier events of its topic, [2, E]."""
    log, topic = world.log, world.topic[world.log.item]
    counts = np.zeros((2, len(log)), int)
    for row in range(len(log)):
        same = (log.user == log.user[row]) & (topic == topic[row])
        labels = log.label[same & (log.timestamp < log.timestamp[row])]
        counts[:, row] = (labels == 1).sum(), (labels == 0).sum()
    return counts


def by_hand(world, dtype=torch.float64):
    return returns.by_hand(world).to(dtype)


def logits(model, world, histories, rows):
    """Logits and counts of rows, from the amortized path, whole histories."""
    score, count = np.zeros(len(world.log)), np.zeros((2, len(world.log)))
    for batch in user_batches(world.log, histories, rows, max_tokens=500):
        real = batch.row >= 0
        with torch.no_grad():
            score[batch.row[real]] = model(batch.request)[real]
        count[:, batch.row[real]] = returns.counts(model, batch.request)[:, real]
    return score[rows], count[:, rows]


# --- links lose nothing --------------------------------------------------------------


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**16),
    n_topics=st.integers(1, 4),
    dwell=st.sampled_from([0, 1, 4, 30]),
    strength=st.sampled_from([0.3, 1.5, 4.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_links_hold_the_counts_of_any_history(seed, n_topics, dwell, strength, dtype):
    """Counts are integers: what is off by less than a half is not lost."""
    world = small_world(seed, n_topics, dwell, strength=strength)
    rows = np.arange(len(world.log))
    histories = Histories.from_log(world.log)
    _, count = logits(by_hand(world, dtype), world, histories, rows)
    np.testing.assert_array_equal(np.rint(count), known(world))


@settings(max_examples=25)
@given(seed=st.integers(0, 2**16), dwell=st.sampled_from([0, 4]))
def test_counts_are_all_there_is_to_know(seed, dwell):
    """The best guess is a function of them, and more clicks among as many raise it."""
    world = small_world(seed, dwell=dwell)
    guess = world.best_guess(Histories.from_log(world.log))
    clicks, skips = known(world)
    for n in np.unique(clicks + skips):
        rows = clicks + skips == n
        seen = np.unique(clicks[rows])
        of = [guess[rows & (clicks == c)] for c in seen]
        assert max(np.ptp(values) for values in of) < 2e-8  # each is good to 1e-8
        assert (np.diff([values[0] for values in of]) > 2e-8).all()


def test_the_logit_is_the_best_linear_guess():
    """Up to a factor. As many events: more clicks score higher, as they should."""
    world = small_world(n_impressions=900)
    rows, (clicks, skips) = np.arange(900), known(world)
    score, _ = logits(by_hand(world), world, Histories.from_log(world.log), rows)
    mean, worth = returns.prior(world)
    linear = (clicks + worth * mean) / (clicks + skips + worth)
    # What a link reads, at most 1 and 1 / worth in three entries, is next to
    # 2 LARGE^2 in its squared norm.
    wobble = (1 + 1 / worth) ** 2 / returns.LARGE**2
    ratio = score / linear
    assert ratio.max() / ratio.min() < 1 + wobble
    for n in np.unique(clicks + skips):
        at = clicks + skips == n
        order = np.argsort(clicks[at], kind="stable")
        steps = np.diff(score[at][order])
        same = np.diff(clicks[at][order]) == 0
        assert (np.abs(steps[same]) < 1e-12).all() and (steps[~same] > 1e-6).all()


def test_the_prior_is_that_of_the_world():
    """Its mean is the guess about a stranger; its worth makes linear guesses best."""
    world = small_world(n_users=3000, n_impressions=12_000, dwell=0)
    mean, worth = returns.prior(world)
    stranger = world.best_guess(Histories.from_log(world.log), max_events=0)
    np.testing.assert_allclose(stranger, mean, atol=1e-8)
    rng = np.random.default_rng(0)
    z = rng.normal(size=1_000_000)
    p = 1 / (1 + np.exp(-world.public_logit[0] - world.private_strength * z))
    clicks = rng.binomial(5, p)
    slope = np.cov(clicks, p)[0, 1] / clicks.var()  # of the regression of p on clicks
    assert abs(slope * (5 + worth) - 1) < 0.01


def test_a_hand_set_model_is_an_ordinary_one():
    """A LIME-MHA as wide as topics + 5, one link a topic, that reads no ids."""
    world = small_world(n_topics=4)
    model = returns.by_hand(world)
    assert type(model.encoder) is LimeMHA
    assert model.encoder.links.shape == (4, 9)
    assert set(model.embeddings.users.names) == {"segment"}
    assert set(model.embeddings.items.names) == {"topic"}


def test_it_is_for_worlds_whose_items_are_alike():
    for options in (dict(quality=0.1), dict(rho=0.1)):
        with pytest.raises(ValueError, match="quality 0 and rho 0"):
            returns.by_hand(small_world(**options))


# --- truncation does -----------------------------------------------------------------


def test_returns_are_worth_nothing_to_truncation_and_all_to_links():
    world = planted_world(
        seed=0, n_impressions=20_000, n_users=50, n_items=50, dwell=16, **ALIKE
    )
    histories = Histories.from_log(world.log)
    absence = world.absence(histories)
    rows = np.flatnonzero(absence >= 8)
    p = world.probability[rows]
    last, whole = (world.best_guess(histories, n)[rows] for n in (8, None))
    assert expected_auc(last, p) == 0.5
    score = score_rows(
        by_hand(world, torch.float32),
        world.log,
        histories,
        rows,
        batching=lambda *job, **_: batches(*job, batch_size=256, max_events=20_000),
    )
    assert expected_auc(whole, p) > 0.7
    # Rounding decides ties among equal counts, and the linear guess orders unequal
    # numbers of events a little differently.
    assert abs(expected_auc(score, p) - expected_auc(whole, p)) < 0.003


# --- the data of the record ----------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    return returns.dataset(0)


def test_no_user_is_in_two_parts_and_histories_are_whole(data):
    split, log = data.split, data.world.log
    users = [
        set(log.user[part]) for part in (split.train, split.validation, split.test)
    ]
    assert not users[0] & users[1] and not users[1] & users[2]
    assert not users[0] & users[2]
    assert [max(part) for part in users] == [199, 249, 549]
    for part in (split.train, split.validation, split.test):
        length = data.histories.lengths(part)
        assert length.max() == returns.LONGEST - 1 and length.min() == 0


def test_returns_come_after_hundreds_of_events(data):
    away = (returns.TOPICS - 1) * returns.DWELL
    assert away > 200
    absence = data.world.absence(data.histories)[data.split.test]
    assert (data.returned == (absence >= returns.R)).all()
    # A tie hides an event of the row's own second, or two.
    assert set(absence[data.returned]) <= {away - 2, away - 1, away}
    assert data.returned.sum() > 500


# --- the record ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs():
    return record.load("returns").runs


def test_a_model_that_there_is_not_is_named():
    with pytest.raises(KeyError, match=r"no model \['BERT'\]; there are"):
        next(returns.runs(["BERT"]))


def test_the_record_is_of_the_models_and_seeds_in_the_code(runs):
    expected = {(name, seed) for name in returns.NAMES for seed in returns.SEEDS}
    assert set(zip(runs.model, runs.seed, strict=True)) == expected
    assert len(runs) == len(expected)


def test_the_recorded_ceilings_are_those_of_the_code(runs):
    """And the hand-set model's AUC with them: no training is in either."""
    recorded = runs[runs.seed == 0].set_index("model")
    for name in (*returns.CEILINGS, returns.BY_HAND):
        row = next(returns.runs([name]))
        for rows in ("auc_returned", "auc"):
            assert abs(row[rows] - recorded[rows][name]) < 1e-3


def test_what_was_recorded_keeps_to_the_ceilings(runs):
    """As far as 300 users can tell: a ceiling bounds the mean over all users."""
    auc = runs.pivot(index="seed", columns="model")
    stranger, last, whole = returns.CEILINGS
    assert (auc["auc_returned"][[stranger, last]] == 0.5).all(axis=None)
    assert (auc["auc_returned"]["truncated MHA"] - 0.5).abs().max() < 0.05
    for rows in ("auc_returned", "auc"):
        gap = auc[rows, whole] - auc[rows, returns.BY_HAND]
        assert gap.abs().max() < 0.003
        for name in returns.MODELS:
            assert (auc[rows, name] < auc[rows, whole] + 0.003).all()
    assert (auc["auc_returned"]["LIME-MHA"] > 0.75).all()
