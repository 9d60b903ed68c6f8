"""Training: what it sees, when it stops, what it leaves behind."""

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from recsys_edu import checkpoint as checkpoints
from recsys_edu import training
from recsys_edu.batch import batches, user_batches
from recsys_edu.data import Features, Histories, split_by_time
from recsys_edu.data.synthetic import planted_world
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings
from recsys_edu.encoders.append import AppendEncoder
from recsys_edu.encoders.concat import ConcatEncoder
from recsys_edu.encoders.hstu import HSTU
from recsys_edu.encoders.lime import LimeMHA
from recsys_edu.encoders.pooling import MeanPooling
from recsys_edu.encoders.target_attention import DIN
from recsys_edu.metrics import evaluate, expected_auc
from recsys_edu.training import (
    HISTORY,
    NAIVE,
    Epoch,
    Fit,
    Metrics,
    fit,
    log_loss,
    score_rows,
    train_epoch,
)

# Most runs here are too short to learn anything, and say so.
pytestmark = pytest.mark.filterwarnings("ignore:.* A sparse log may stand still")


def by_row(batch_size, max_events=0):
    """Batches of one row an impression."""
    return partial(batches, batch_size=batch_size, max_events=max_events)


def recipe(batch_size=2048, max_events=0, **changes):
    """NAIVE with other batches and what else changes."""
    return replace(NAIVE, batching=by_row(batch_size, max_events), **changes)


@pytest.fixture(autouse=True)
def one_thread():
    """Equal seeds give equal weights on an equal number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data():
    """(log, histories, split) of a small world."""
    log = planted_world(seed=0, n_impressions=4_000, n_users=80, n_items=20).log
    return log, Histories.from_log(log), split_by_time(log)


class Table(nn.Module):
    """A logit for each item: the smallest model that learns."""

    def __init__(self, n_items=20):
        super().__init__()
        self.logit = nn.Embedding(n_items, 1)

    def forward(self, request):
        return self.logit(request.candidates).squeeze(-1)


class Dropping(DLRM):
    """A DLRM with dropout, so that training draws random numbers."""

    def forward(self, request):
        logits = super().forward(request)
        return nn.functional.dropout(logits, 0.3, training=self.training)


def dlrm(log, encoder=None, *, model=DLRM, seed=0, hidden=(8,)):
    """A small model; `encoder` is a class of encoders."""
    torch.manual_seed(seed)
    embeddings = Embeddings(log.users, log.items, log.events, d=4)
    return model(embeddings, encoder and encoder(4), hidden=hidden)


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


# --- what it does --------------------------------------------------------------------


@pytest.mark.parametrize("averaging", [0.0, 0.8])
def test_fit_is_a_plain_loop(data, averaging):
    """Of three epochs, each the best so far: moments and average go through them."""
    log, histories, split = data
    model, plain = Table().double(), Table().double()
    plain.load_state_dict(model.state_dict())
    how = recipe(
        500, max_epochs=3, learning_rate=0.01, weight_decay=0.5, averaging=averaging
    )
    result = fit(model, log, histories, split, how, seed=7)
    assert result.best == 2
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.5)
    average = None  # of the weights after each step, the first one whole
    generator = np.random.default_rng(7)
    for _ in range(3):
        order = generator.permutation(split.train)
        groups = [order[first : first + 500] for first in range(0, len(order), 500)]
        generator.shuffle(groups)
        for rows in groups:
            logits = plain.logit(torch.from_numpy(log.item[rows])).squeeze(-1)
            loss = nn.functional.binary_cross_entropy_with_logits(
                logits, torch.from_numpy(log.label[rows]).double()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            now = weights(plain).clone()
            average = now if average is None else average.lerp(now, 1 - averaging)
    torch.testing.assert_close(weights(model), average, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("averaging", [0.0, 0.8])
@pytest.mark.parametrize("epochs", [0, 2])
def test_fit_leaves_no_part_of_the_model_in_training_mode(data, averaging, epochs):
    model = dlrm(data[0], model=Dropping).train()
    fit(model, *data, recipe(max_epochs=epochs, averaging=averaging), seed=0)
    assert not any(module.training for module in model.modules())


def test_the_record_of_an_epoch(data):
    """At learning rate 0 nothing moves: both numbers can be worked out."""
    log, histories, split = data
    model = Table()
    how = recipe(999, max_epochs=1, learning_rate=0.0)
    result = fit(model, log, histories, split, how, seed=0)
    probability = torch.sigmoid(model.logit.weight.double())[log.item, 0].detach()
    losses = nn.functional.binary_cross_entropy(
        probability, torch.from_numpy(log.label).double(), reduction="none"
    ).numpy()
    [epoch] = result.epochs
    # fp32: a mean of a batch is off by at most its length in roundings.
    assert epoch.train_loss == pytest.approx(losses[split.train].mean(), rel=999 * 6e-8)
    rows = split.validation
    scores = score_rows(model, log, histories, rows, batching=how.batching)
    expected = evaluate(log.label[rows], scores)
    assert epoch.validation == expected
    assert result.seconds == epoch.seconds > 0


class Spy(Table):
    """Notes which items were shown in which mode: item e is row e of its log."""

    def __init__(self, n_items):
        super().__init__(n_items)
        self.shown = {True: [], False: []}
        self.widths = {True: 0, False: 0}

    def forward(self, request):
        assert torch.is_grad_enabled() == self.training
        self.shown[self.training] += request.candidates[:, 0].tolist()
        width = int(request.history.mask.sum(1).max())
        self.widths[self.training] = max(self.widths[self.training], width)
        return super().forward(request)


@pytest.mark.parametrize("max_events", [0, 3])
def test_which_rows_are_seen_when(make_log, max_events):
    log = make_log([(e % 4, e) for e in range(100)])
    split = split_by_time(log)
    model = Spy(len(log))
    how = recipe(7, max_events, max_epochs=2)
    result = fit(model, log, Histories.from_log(log), split, how, seed=0)
    assert len(result.epochs) == 2
    once, again = np.split(np.array(model.shown[True]), 2)
    assert sorted(once) == sorted(again) == split.train.tolist()
    assert once.tolist() != again.tolist() != split.train.tolist()
    assert model.shown[False] == 2 * split.validation.tolist()
    assert model.widths == {True: max_events, False: max_events}


@pytest.fixture
def started(monkeypatch):
    """Any NE counts as begun: patience counts from the first epoch on."""
    monkeypatch.setattr(training, "STARTED", math.inf)


@pytest.mark.parametrize("patience", [1, 3])
def test_without_improvement_it_stops_after_patience(data, patience, started):
    log, histories, split = data
    how = recipe(patience=patience, learning_rate=0.0)
    with pytest.warns(UserWarning, match=rf"more patience \({patience}\)"):
        result = fit(Table(), log, histories, split, how, seed=0)
    assert len(result.epochs) == 1 + patience
    assert result.best == 0


@pytest.mark.parametrize(
    ("ne", "epochs"), [((1.0, 1.2, 1.1, 1.3), 4), ((0.98,) * 4, 3)]
)
def test_what_has_not_started_has_not_converged(data, monkeypatch, ne, epochs):
    """Patience counts once a validation NE says that something has been learnt."""
    found = iter(ne)
    judge = lambda *_: Metrics(0.5, next(found), 1.0)  # noqa: E731
    monkeypatch.setattr(training, "evaluate", judge)
    how = recipe(patience=2, learning_rate=0.0, max_epochs=4)
    with pytest.warns(UserWarning):
        result = fit(Table(), *data, how, seed=0)
    assert len(result.epochs) == epochs


def test_the_bar_counts_the_epoch_that_it_stopped_after(data, capsys, started):
    with pytest.warns(UserWarning):
        fit(Table(), *data, recipe(patience=2, learning_rate=0.0), seed=0)
    [line] = capsys.readouterr().err.splitlines()
    assert " 3/20 " in line and "validation NE " in line


def test_the_best_epoch_s_weights_come_back(data, started):
    """Overfitted on purpose; the weights are those of a run that ends at the best."""
    log, histories, split = data
    how = recipe(256, learning_rate=0.02, weight_decay=0.0)
    model = dlrm(log)
    result = fit(model, log, histories, split, how, seed=0)
    ne = [epoch.validation.ne for epoch in result.epochs]
    assert result.best == int(np.argmin(ne))
    assert len(ne) == result.best + 3 < 20
    again = dlrm(log)
    fit(again, log, histories, split, replace(how, max_epochs=result.best + 1), seed=0)
    assert torch.equal(weights(model), weights(again))
    longer = dlrm(log)
    fit(longer, log, histories, split, replace(how, max_epochs=result.best + 2), seed=0)
    assert torch.equal(weights(model), weights(longer))
    scores = score_rows(model, log, histories, split.validation, batching=how.batching)
    best = result.epochs[result.best].validation
    assert evaluate(log.label[split.validation], scores) == best


def test_no_epoch_leaves_the_model_alone(data):
    model = Table()
    before = weights(model).clone()
    result = fit(model, *data, recipe(max_epochs=0), seed=0)
    assert result.epochs == () and result.seconds == 0
    assert torch.equal(weights(model), before)


# --- seeds ---------------------------------------------------------------------------


def trained(data, encoder, *, init=0, seed=0):
    model = dlrm(data[0], encoder, model=Dropping, seed=init)
    fit(model, *data, recipe(2048, 5, max_epochs=2), seed=seed)
    return weights(model)


def test_equal_seeds_give_equal_weights(data, mean_pooling):
    first = trained(data, mean_pooling)
    torch.rand(1)  # whatever else was drawn before
    np.random.rand()
    assert torch.equal(trained(data, mean_pooling), first)
    assert not torch.equal(trained(data, mean_pooling, seed=1), first)
    assert not torch.equal(trained(data, mean_pooling, init=1), first)


def test_a_seed_decides_order_and_dropout_apart_from_the_world_s_state(data):
    """The generators of the process are neither read nor moved."""
    log, histories, split = data

    def run(state):
        model = dlrm(log, model=Dropping)
        torch.manual_seed(state)
        np.random.seed(state)
        random.seed(state)
        before = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
        fit(model, log, histories, split, recipe(max_epochs=1), seed=0)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all()
        assert random.getstate() == before[2]
        return weights(model)

    assert torch.equal(run(1), run(2))


# --- learning ------------------------------------------------------------------------


def world_to_learn(rho):
    """Few items and a strong taste: 30,000 rows are enough to learn it."""
    return planted_world(
        seed=0, n_impressions=30_000, n_users=750, n_items=20, n_topics=3,
        n_segments=3, rho=rho, strength=2.0,
    )  # fmt: skip


def learned_auc(world, encoder=None, max_events=0):
    """Expected test AUC of a model that is told no user ids, and its ceiling."""
    log, histories = world.log, Histories.from_log(world.log)
    split = split_by_time(log)
    users = log.users.without("user_id")
    torch.manual_seed(0)
    embeddings = Embeddings(users, log.items, log.events, d=8)
    model = DLRM(embeddings, encoder and encoder(8), hidden=(16,))
    how = recipe(512, max_events, max_epochs=8, learning_rate=0.01, weight_decay=0.1)
    fit(model, log, histories, split, how, seed=0)
    scores = score_rows(
        model, log, histories, split.test, batching=by_row(4096, max_events)
    )
    truth = world.probability[split.test]
    ceilings = {
        n: expected_auc(world.best_guess(histories, n)[split.test], truth)
        for n in (0, max_events)
    }
    return expected_auc(scores, truth), ceilings


def test_a_naive_dlrm_comes_near_the_ceiling_without_history():
    """Seeds 0-3 end 0.000 to 0.003 below it; chance is 0.35 below."""
    reached, ceilings = learned_auc(world_to_learn(rho=0.9))
    assert ceilings[0] - 0.01 < reached < ceilings[0] + 0.01


def test_an_encoder_passes_the_ceiling_without_history(mean_pooling):
    """Half of what ten events can give, by pooling alone."""
    world = world_to_learn(rho=0.0)
    reached, ceilings = learned_auc(world, mean_pooling, max_events=10)
    assert ceilings[0] + 0.05 < reached < ceilings[10]


# --- going wrong ---------------------------------------------------------------------


class Diverging(Table):
    """Adds `what` to its logits from its k-th epoch, in training or in validation."""

    def __init__(self, epoch, in_training, what):
        super().__init__()
        self.left, self.in_training, self.what = epoch, in_training, what

    def train(self, mode=True):
        self.left -= mode  # fit turns training on once an epoch
        return super().train(mode)

    def forward(self, request):
        bad = self.left <= 0 and self.training == self.in_training
        return super().forward(request) + (self.what if bad else 0.0)


# -inf makes the loss infinite and leaves the weights finite; NaN spoils them.
@pytest.mark.parametrize(
    ("in_training", "what"), [(True, -np.inf), (True, np.nan), (False, np.nan)]
)
@pytest.mark.parametrize("epoch", [1, 3])
def test_what_is_not_finite_names_its_epoch(data, epoch, in_training, what):
    model = Diverging(epoch, in_training, what)
    with pytest.raises(FloatingPointError, match=f"^epoch {epoch} .*below 0.02"):
        fit(model, *data, recipe(learning_rate=0.02), seed=0)


def test_a_wild_learning_rate_is_told(data):
    with pytest.raises(FloatingPointError, match=r"try a learning rate below 1e\+20"):
        fit(dlrm(data[0]), *data, recipe(learning_rate=1e20), seed=0)


# --- scores --------------------------------------------------------------------------


def test_scores_come_in_the_order_of_the_rows(data):
    log, histories, _ = data
    model = Table()
    rows = np.random.default_rng(0).permutation(len(log))[:100]
    scores = score_rows(model, log, histories, rows, batching=by_row(7))
    assert scores.dtype == np.float32
    expected = torch.sigmoid(model.logit.weight.detach())[log.item[rows], 0]
    # The last places of a sigmoid differ between vectorised and single elements.
    np.testing.assert_array_max_ulp(scores, expected.numpy(), maxulp=4)
    assert len(score_rows(model, log, histories, rows[:0], batching=by_row(7))) == 0


def test_the_log_s_last_row_is_scored_as_itself_beside_padding(make_log):
    """Padding is row -1, which is also the last row's index."""
    # Runs of 3, 2, 3 and 1 rows: the last row's, which is the shortest, comes first.
    log = make_log([(0, t) for t in range(5)] + [(1, t) for t in range(3)] + [(2, 9)])
    histories, model, rows = Histories.from_log(log), Table(len(log)), np.arange(9)
    batching = partial(user_batches, max_tokens=10**6, max_candidates=3)
    [batch] = batching(log, histories, rows)
    flat = batch.row.flatten()
    assert (flat[batch.row.shape[1] :] < 0).any() and (flat[0] == 8)
    scores = score_rows(model, log, histories, rows, batching=batching)
    logit = model.logit.weight.detach()[log.item, 0]
    np.testing.assert_array_max_ulp(scores, torch.sigmoid(logit).numpy(), maxulp=4)


def test_scores_are_probabilities_of_an_eval_mode_model(data):
    log, histories, split = data
    model = dlrm(log, model=Dropping).train()
    rows, state = split.test, torch.get_rng_state()
    scores = score_rows(model, log, histories, rows, batching=by_row(512))
    assert not model.training
    assert ((scores > 0) & (scores < 1)).all()
    again = score_rows(model.train(), log, histories, rows, batching=by_row(512))
    assert (again == scores).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_scores_read_as_many_events_as_asked(data, mean_pooling):
    log, histories, split = data
    model = dlrm(log, mean_pooling)
    rows = split.test[histories.lengths(split.test) > 5]
    none, some = (
        score_rows(model, log, histories, rows, batching=by_row(4096, n))
        for n in (0, 5)
    )
    assert (none != some).all()
    [batch] = batches(log, histories, rows, batch_size=10**6, max_events=5)
    with torch.inference_mode():
        expected = torch.sigmoid(model(batch.request))[:, 0].numpy()
    assert (some == expected).all()


class Counting(DLRM):
    """Notes the shape of the items that it goes through."""

    def encode_items(self, item, code=None):
        self.went = [*getattr(self, "went", ()), tuple(item.shape)]
        return super().encode_items(item, code)


ENCODERS = {
    "append": partial(AppendEncoder, layers=1),
    "concat": partial(ConcatEncoder, layers=1),
    "HSTU": partial(HSTU, layers=1),
    "LIME-MHA": partial(LimeMHA, r=3),
    "DIN": DIN,
    "mean pooling": lambda d: MeanPooling(),
    "none": None,
}


@pytest.fixture(scope="module")
def requests(data):
    """The log with requests of 1 to several rows, which share a second; histories."""
    log = data[0]
    rank = np.arange(len(log)) // 100
    _, request = np.unique(log.user * len(log) + rank, return_inverse=True)
    seconds = log.timestamp[0] + 90_000 * rank
    log = replace(log, timestamp=seconds, request=request)
    assert set(np.bincount(request)) >= {1, 2, 3}
    return log, Histories.from_log(log)


RUNS = partial(user_batches, max_events=9, max_candidates=8, max_tokens=400)
# Events of "concat" read later ones, so it takes no runs.
CASES = [(name, by_row(7, 9)) for name in ENCODERS]
CASES += [(name, RUNS) for name in ENCODERS if name != "concat"]


@pytest.mark.parametrize(("name", "batching"), CASES)
def test_a_catalogue_gone_through_once_scores_as_the_model_does(
    requests, name, batching
):
    """In float64, so that what the two share is all but the last rounding."""
    log, histories = requests
    model = dlrm(log, ENCODERS[name], model=Counting).double()
    for weight in model.parameters():  # large enough for all parts to be heard
        nn.init.normal_(weight, std=0.5)
    rows = np.random.default_rng(0).permutation(len(log))[:400]
    got = score_rows(model, log, histories, rows, batching=batching)
    assert model.went == [(log.n_items,)]  # once, each item
    expected, padded = np.full(len(log), np.nan), 0
    for batch in batching(log, histories, rows):
        real = batch.row >= 0
        with torch.inference_mode():
            p = torch.sigmoid(model(batch.request))
        expected[batch.row[real]], padded = p[real], padded + (~real).sum()
    assert padded > 0
    np.testing.assert_array_max_ulp(got, expected[rows].astype(np.float32), maxulp=1)
    assert len(np.unique(got)) > 2 * log.n_items  # of users and histories, too
    # Of fewer rows than items, only theirs are gone through.
    model.went = []
    few = rows[: log.n_items - 1]
    again = score_rows(model, log, histories, few, batching=batching)
    assert (log.n_items,) not in model.went and len(model.went) > 0
    assert all(len(shape) == 2 for shape in model.went)
    if batching.func is batches:  # a run of a user begins with the rows asked for
        np.testing.assert_array_max_ulp(again, got[: len(few)], maxulp=1)


# --- steps ---------------------------------------------------------------------------


class Calls(TorchDispatchMode):
    """Notes every operation: how often, and the bytes of the tensors it was given."""

    def __init__(self):
        super().__init__()
        self.names, self.bytes = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        self.bytes += sum(tensor.nbytes for tensor in tensors)
        by_mask = any(tensor.dtype == torch.bool for tensor in tensors[1:])
        name = func._schema.name
        self.names.append(f"{name} by a mask" if by_mask else name)
        return func(*args, **(kwargs or {}))


WAITS = {
    "aten::_local_scalar_dense",  # .item()
    "aten::nonzero",
    "aten::index by a mask",
    "aten::masked_select by a mask",
}
"""What makes the host wait for the device: it must know a value, or how many."""


def test_no_step_reads_a_number_back(data):
    log, histories, split = data

    def waits(n_batches):
        model = Table()
        sample = list(user_batches(log, histories, split.train, max_tokens=900))
        # What a batch costs before it is on the device is not counted.
        with Calls() as calls:
            train_epoch(model, sample[:n_batches], NAIVE.optimizer(model))
        assert len(sample) > n_batches and "aten::_fused_adamw_" in calls.names
        return sum(name in WAITS for name in calls.names)

    assert waits(6) == waits(2) == 1


def test_the_loss_of_an_epoch_is_the_mean_over_real_rows(data):
    """At learning rate 0: batches of many sizes, with padding in them."""
    log, histories, split = data
    model = Table().double()
    how = replace(recipe(), learning_rate=0.0)
    sample = list(user_batches(log, histories, split.train, max_tokens=900))
    counts = [int((batch.row >= 0).sum()) for batch in sample]
    assert len(set(counts)) > 1 and any((b.row < 0).any() for b in sample)
    loss = train_epoch(model, sample, how.optimizer(model))
    logit = model.logit.weight.detach()[log.item[split.train], 0]
    label = torch.from_numpy(log.label[split.train]).double()
    expected = nn.functional.binary_cross_entropy_with_logits(logit, label)
    assert loss == pytest.approx(expected.item(), rel=1e-13)


@pytest.mark.parametrize("garbage", [0.0, 1e30, np.inf, -np.inf, np.nan])
def test_padding_has_no_part_in_the_loss_nor_in_its_gradient(data, garbage):
    log, histories, split = data
    sample = user_batches(log, histories, split.train, max_tokens=900)
    batch = next(b for b in sample if (b.row < 0).any() and len(b.row) > 1)
    real = batch.row >= 0
    clean = torch.randn(batch.row.shape, dtype=torch.float64)
    full = clean.where(real, garbage).requires_grad_()
    loss = log_loss(full, batch)
    loss.backward()
    clean.requires_grad_()
    expected = nn.functional.binary_cross_entropy_with_logits(
        clean[real], batch.label[real].double()
    )
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(full.grad, clean.grad, rtol=1e-13, atol=0)


def test_a_step_of_the_average_costs_the_same_for_any_catalogue():
    """Rows of features are data: a million of them are neither copied nor averaged."""

    def bytes_of_a_step(n):
        rng = np.random.default_rng(0)
        items = Features.fit(
            ids=np.arange(n), dense={"age": rng.normal(size=n)},
            sparse={"kind": rng.integers(0, 9, n)},
        )  # fmt: skip
        users = Features.fit(ids=np.arange(3), sparse={"segment": [0, 1, 2]})
        model = DLRM(Embeddings(users, items, None, d=8))
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        average.update_parameters(model)
        with Calls() as calls:
            average.update_parameters(model)
        n_bytes = sum(weight.nbytes for weight in model.parameters())
        assert calls.bytes < 9 * n_bytes
        return calls.bytes

    assert bytes_of_a_step(10**3) == bytes_of_a_step(10**6)


# --- what is said and what is refused ------------------------------------------------


def history_of(*ne, train_loss=0.5):
    """What a run of these validation NEs comes to."""
    epochs = tuple(Epoch(train_loss, Metrics(0.5, value, 1.0), 1.0) for value in ne)
    return Fit(epochs, int(np.argmin(ne)) if ne else 0)


@pytest.mark.parametrize(
    ("ne", "doubt"),
    [
        ((), None),
        ((0.9,), None),
        ((0.9, 0.8, 0.85), None),
        ((0.9, 0.91, 0.92), "^the first of 3 epochs was the best.* NE of 0.9000$"),
        ((1.0001, 1.0008, 1.0051), "^the best validation NE is 1.0001: no better than"),
        ((1.2, 1.0), "^the best validation NE is 1.0000: no better than"),
    ],
)
def test_a_run_that_learned_nothing_says_so(ne, doubt):
    found = history_of(*ne).doubt
    assert found is doubt is None or re.search(doubt, found)


def test_fit_warns_with_a_mend_and_points_at_its_caller(data):
    how = recipe(learning_rate=0.0, patience=3)
    message = r"more patience \(3\) or epochs \(20\), or another .* \(0.0\)"
    with pytest.warns(UserWarning, match=message) as caught:
        fit(Table(), *data, how, seed=0)
    assert caught[0].filename == __file__


def test_a_run_that_learned_warns_of_nothing(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Table()
        nn.init.zeros_(model.logit.weight)
        how = recipe(256, learning_rate=0.05, weight_decay=0.0)
        result = fit(model, *data, how, seed=0)
    assert result.doubt is None


class Untouched(Table):
    """Must not be asked for anything."""

    def forward(self, request):
        raise AssertionError("an epoch was begun")


@pytest.mark.parametrize("part", ["train", "validation"])
@pytest.mark.parametrize("label", [0, 1, None])
def test_a_part_with_one_label_is_refused_before_an_epoch(data, part, label):
    log, histories, split = data
    rows = getattr(split, part)
    rows = rows[log.label[rows] == label]
    split = replace(split, **{part: rows})
    found = "none at all" if label is None else f"all of label {label}"
    message = rf"the {len(rows):,} rows of split\.{part} are {found}"
    with pytest.raises(ValueError, match=message):
        fit(Untouched(), log, histories, split, recipe(), seed=0)


def test_an_encoder_that_is_given_no_history_is_refused(data, mean_pooling):
    model = dlrm(data[0], mean_pooling)
    none = partial(HISTORY.batching, max_events=0)
    for how in (NAIVE, replace(HISTORY, batching=none)):
        with pytest.raises(ValueError, match=r"MeanPooling reads histories.* HISTORY"):
            fit(model, *data, how, seed=0)
    fit(model, *data, replace(HISTORY, max_epochs=1), seed=0)


def test_an_encoder_may_train_on_a_log_in_which_nobody_comes_back(
    make_log, mean_pooling
):
    """Each user has one impression: there is no history to give."""
    log = make_log([(e, e) for e in range(60)])
    data = log, Histories.from_log(log), split_by_time(log)
    model = dlrm(log, mean_pooling)
    fitted = fit(model, *data, replace(HISTORY, max_epochs=1, averaging=0.0), seed=0)
    assert len(fitted.epochs) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        dict(learning_rate=-1e-3), dict(weight_decay=-1.0), dict(averaging=1.0),
        dict(averaging=-0.1), dict(max_epochs=-1), dict(patience=0),
        dict(learning_rate=float("nan")),
    ],
)  # fmt: skip
def test_a_recipe_out_of_range_is_refused(wrong):
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=f"{name} is {value}: it is out of range"):
        replace(NAIVE, **wrong)


def test_what_decides_what_a_model_learns_has_no_default(data):
    with pytest.raises(TypeError, match=r"batching.*learning_rate.*weight_decay"):
        training.Recipe()
    with pytest.raises(TypeError, match="recipe"):
        fit(Table(), *data, seed=0)
    with pytest.raises(TypeError, match="batching"):
        score_rows(Table(), *data[:2], data[2].test)


# --- going on after a kill -----------------------------------------------------------


LONG = recipe(
    256, max_epochs=9, patience=9, learning_rate=0.01, weight_decay=0.0, averaging=0.9
)
"""Nine epochs; the best is the second or third, with or without averaging."""


def dropping(log):
    return dlrm(log, model=Dropping)


def outcome(model, result):
    """All that a run leaves, but for how long it took."""
    epochs = [(epoch.train_loss, epoch.validation) for epoch in result.epochs]
    return weights(model).tolist(), epochs, result.best


@pytest.fixture(scope="module")
def unbroken(data):
    """The outcome of each recipe, trained without a stop."""
    found = {}

    def run(how):
        if (key := repr(how)) not in found:
            torch.set_num_threads(1)
            model = dropping(data[0])
            found[key] = outcome(model, fit(model, *data, how, seed=0))
        return found[key]

    return run


def epochs_in(path):
    with safe_open(path, "pt") as file:
        return len(json.loads(file.metadata()["facts"])["epochs"])


@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_a_run_that_broke_in_an_epoch_goes_on_as_if_it_had_not(
    data, unbroken, tmp_path, monkeypatch, averaging
):
    """Broken twice, at steps drawn anew in every run of this test."""
    how, path = replace(LONG, averaging=averaging), tmp_path / "run.safetensors"
    steps = -(-len(data[2].train) // 256)
    broke = [random.randint(k * steps + 1, (k + 3) * steps) for k in (1, 5)]
    print("broken at steps", broke)
    honest, done = training.log_loss, 0

    def breaking(logits, batch):
        nonlocal done
        done += 1
        if done in broke:
            raise OSError("the machine went away")
        return honest(logits, batch)

    monkeypatch.setattr(training, "log_loss", breaking)
    for _ in broke:
        with pytest.raises(OSError, match="went away"):
            fit(dropping(data[0]), *data, how, seed=0, checkpoint=path)
        # The next run begins at the last epoch that was whole.
        done = epochs_in(path) * steps
        broke = broke[1:]
    model = dropping(data[0])
    result = fit(model, *data, how, seed=0, checkpoint=path)
    assert outcome(model, result) == unbroken(how)
    assert result.best in (1, 2)  # so the best weights came out of the file
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]


def slow_run(path):
    """What the killed process does: the same run, each epoch slowed down."""
    torch.set_num_threads(1)
    log = planted_world(seed=0, n_impressions=4_000, n_users=80, n_items=20).log
    judge = training.evaluate

    def slowly(*scores):
        time.sleep(0.1)
        return judge(*scores)

    training.evaluate = slowly
    split = split_by_time(log)
    fit(
        dropping(log), log, Histories.from_log(log), split, LONG, seed=0,
        checkpoint=path,
    )  # fmt: skip


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")
def test_a_killed_process_goes_on_as_if_it_had_not_been(data, unbroken, tmp_path):
    path = tmp_path / "run.safetensors"
    wanted, wait = random.randint(1, 6), random.uniform(0, 0.2)
    print(f"killed {wait:.3f} s after epoch {wanted}")
    process = subprocess.Popen([sys.executable, __file__, path])
    while process.poll() is None and not (path.exists() and epochs_in(path) >= wanted):
        time.sleep(0.005)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert wanted <= epochs_in(path) < LONG.max_epochs
    model = dropping(data[0])
    result = fit(model, *data, LONG, seed=0, checkpoint=path)
    assert outcome(model, result) == unbroken(LONG)


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    """The checkpoint of two epochs of LONG, kept as it is."""
    path = tmp_path_factory.mktemp("kept") / "run.safetensors"
    fit(dropping(data[0]), *data, replace(LONG, max_epochs=2), seed=0, checkpoint=path)
    content = path.read_bytes()
    yield path
    assert path.read_bytes() == content


def test_more_epochs_and_more_patience_may_be_asked_for(
    data, unbroken, checkpoint, tmp_path
):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(checkpoint.read_bytes())
    model = dropping(data[0])
    result = fit(model, *data, LONG, seed=0, checkpoint=copy)
    assert outcome(model, result) == unbroken(LONG)


COOLING = replace(LONG, cooling=True, max_epochs=4)


def test_a_rate_that_cools_falls_by_the_same_amount_each_epoch(data, monkeypatch):
    rates = []

    def step(model, batches, optimizer, average):
        rates.extend(group["lr"] for group in optimizer.param_groups)
        return 0.5

    monkeypatch.setattr(training, "train_epoch", step)
    with pytest.warns(UserWarning):
        fit(dropping(data[0]), *data, COOLING, seed=0)
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025], rel=1e-12)


def test_a_cooling_run_goes_on_as_if_it_had_never_stopped(data, tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    whole, model = dropping(data[0]), dropping(data[0])
    expected = fit(whole, *data, COOLING, seed=0)
    original, epochs = training.train_epoch, []

    def killed(*arguments):
        epochs.append(1)
        if len(epochs) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(training, "train_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(model, *data, COOLING, seed=0, checkpoint=path)
    monkeypatch.setattr(training, "train_epoch", original)
    result = fit(model, *data, COOLING, seed=0, checkpoint=path)
    assert outcome(model, result) == outcome(whole, expected)
    with pytest.raises(ValueError, match="max_epochs is 5 here and 4 in the file"):
        longer = replace(COOLING, max_epochs=5)
        fit(dropping(data[0]), *data, longer, seed=0, checkpoint=path)


def test_a_write_that_fails_leaves_the_checkpoint_before_it(
    data, tmp_path, monkeypatch
):
    path = tmp_path / "run.safetensors"
    fit(dropping(data[0]), *data, replace(LONG, max_epochs=2), seed=0, checkpoint=path)
    content = path.read_bytes()

    def full_disk(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        fit(dropping(data[0]), *data, LONG, seed=0, checkpoint=path)
    assert path.read_bytes() == content


def test_a_finished_run_comes_back_without_a_step(data, checkpoint, monkeypatch):
    how = replace(LONG, max_epochs=2)
    models = dropping(data[0]), dropping(data[0])
    results = [fit(models[0], *data, how, seed=0)]
    monkeypatch.setattr(training, "train_epoch", None)
    results.append(fit(models[1], *data, how, seed=0, checkpoint=checkpoint))
    assert outcome(models[0], results[0]) == outcome(models[1], results[1])
    assert not models[1].training


def test_a_checkpoint_is_safetensors_and_json(data, checkpoint):
    """8 bytes of length, a JSON header, and the tensors' bytes: nothing to execute."""
    content = checkpoint.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    texts = header.pop("__metadata__")
    assert texts.pop("format") == "recsys_edu training, version 1"
    assert set(map(type, map(json.loads, texts.values()))) == {dict}
    kinds = {name.partition(".")[0] for name in header}
    assert kinds == {"weights", "average", "optimizer", "best", "random"}
    last = max(entry["data_offsets"][1] for entry in header.values())
    assert len(content) == 8 + size + last


OTHERS = {
    "seed is 1 here and 0 in the file": dict(seed=1),
    "learning_rate is 0.02 here and 0.01 in the file": dict(learning_rate=0.02),
    "weight_decay is 1.0 here and 0.0 in the file": dict(weight_decay=1.0),
    "averaging is 0.8 here and 0.9 in the file": dict(averaging=0.8),
    "max_epochs is 1 here and 2 in the file": dict(max_epochs=1),
    "patience is 8 here and 9 in the file": dict(patience=8),
    "batching batch_size is 255 here and 256 in the file": dict(batching=by_row(255)),
    "batching function is 'recsys_edu.batch.user_batches' here": (
        dict(batching=partial(user_batches, max_tokens=900))
    ),
}


@pytest.mark.parametrize("message", OTHERS)
def test_the_checkpoint_of_another_run_is_refused_by_name(data, checkpoint, message):
    changes = {"seed": 0, "max_epochs": 2} | OTHERS[message]
    seed = changes.pop("seed")
    with pytest.raises(ValueError, match=f"another run: .*{message}") as refused:
        fit(
            dropping(data[0]), *data, replace(LONG, **changes), seed=seed,
            checkpoint=checkpoint,
        )  # fmt: skip
    assert f"Move {checkpoint} away to train from the start" in str(refused.value)


def test_the_checkpoint_of_another_model_or_log_is_refused_by_name(
    data, checkpoint, mean_pooling
):
    log, histories, split = data
    label = log.label.copy()
    label[0] = 1 - label[0]
    items = replace(log.items, sparse={k: v[::-1] for k, v in log.items.sparse.items()})
    fewer = replace(split, train=split.train[:-1])
    other = replace(split, validation=split.validation[::-1].copy())
    cut = replace(histories, end=histories.start)
    jobs = {
        "model hidden is [9] here and [8]": dict(model=dlrm(log, hidden=(9,))),
        "model class is 'DLRM' here and 'Dropping' in": dict(model=dlrm(log)),
        "model encoder is {": dict(model=dlrm(log, mean_pooling, model=Dropping)),
        "model weights logit.weight is [20, 1] here": dict(model=Table()),
        "log name is 'mine'": dict(log=replace(log, name="mine")),
        "log contents is": dict(log=replace(log, label=label)),
        ": log contents is": dict(log=replace(log, items=items)),
        "run: log histories is": dict(histories=cut),
        "split train rows is 3199 here and 3200 in": dict(split=fewer),
        "run: split validation contents is": dict(split=other),
    }
    for message, changes in jobs.items():
        job = dict(model=dropping(log), log=log, histories=histories, split=split)
        how = replace(LONG, max_epochs=2)
        if "encoder" in message:
            how = replace(how, batching=by_row(256, 5))
        with pytest.raises(ValueError, match=f"another .*{re.escape(message)}"):
            fit(**job | changes, recipe=how, seed=0, checkpoint=checkpoint)


def test_what_is_no_checkpoint_of_training_is_refused(data, checkpoint, tmp_path):
    def refused(message):
        with pytest.raises(ValueError, match=f"{message}.*Move .* away"):
            fit(dropping(data[0]), *data, LONG, seed=0, checkpoint=path)

    path = tmp_path / "run.safetensors"
    path.write_bytes(checkpoint.read_bytes()[:-1])
    refused("is no whole safetensors file")
    save_file({"a": torch.ones(1)}, path)
    refused("holds 'something else'")
    save_file({"a": torch.ones(1)}, path, {"format": "recsys_edu training, version 0"})
    refused("version 0', this is 'recsys_edu training, version 1'")


def test_a_model_with_tied_and_with_idle_weights_goes_on_too(data, tmp_path):
    """Tied weights share memory, idle ones have no moments."""

    class Odd(Table):
        def __init__(self):
            super().__init__()
            self.again, self.idle = self.logit, nn.Parameter(torch.ones(3))

    def run(max_epochs, path=None):
        torch.manual_seed(0)
        model = Odd()
        how = replace(LONG, max_epochs=max_epochs)
        return outcome(model, fit(model, *data, how, seed=0, checkpoint=path))

    path = tmp_path / "run.safetensors"
    run(2, path)
    assert run(4, path) == run(4)


def test_a_batching_is_told_apart_as_far_as_it_can_be():
    nested = partial(partial(batches, batch_size=np.int64(3)), max_events=0)
    assert checkpoints.described(nested) == {
        "function": "recsys_edu.batch.batches", "args": [], "batch_size": 3,
        "max_events": 0,
    }  # fmt: skip
    assert checkpoints.described(Table) != checkpoints.described(Spy)
    assert checkpoints.described(Table()) == checkpoints.described(Table)


if __name__ == "__main__":
    slow_run(sys.argv[1])
