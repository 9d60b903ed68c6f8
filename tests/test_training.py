"""Training: what it sees, when it stops, what it leaves behind."""

import json
import random
from functools import partial

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from recsys_edu import training
from recsys_edu.batch import batches
from recsys_edu.data import Histories, split_by_time
from recsys_edu.data.synthetic import planted_world
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings
from recsys_edu.metrics import evaluate, expected_auc
from recsys_edu.training import fit, load_checkpoint, save_checkpoint, score_rows


def by_row(batch_size, max_events=0):
    """Batches of one row an impression."""
    return partial(batches, batch_size=batch_size, max_events=max_events)


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
    log, histories, split = data
    model, plain = Table(), Table()
    plain.load_state_dict(model.state_dict())
    fit(
        model, log, histories, split, seed=7, max_epochs=1, batching=by_row(500),
        learning_rate=0.01, weight_decay=0.5, averaging=averaging,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.5)
    average = None  # of the weights after each step, the first one whole
    order = np.random.default_rng(7).permutation(split.train)
    for first in range(0, len(order), 500):
        rows = order[first : first + 500]
        logits = plain.logit(torch.from_numpy(log.item[rows])).squeeze(-1)
        loss = nn.functional.binary_cross_entropy_with_logits(
            logits, torch.from_numpy(log.label[rows])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        now = weights(plain).double()
        average = now if average is None else average.lerp(now, 1 - averaging)
    # Seven averages in fp32, each rounded thrice.
    error = (weights(model) - average).abs().max()
    assert error <= (21 * 2**-24 * average.abs().max() if averaging else 0)


def test_the_record_of_an_epoch(data):
    """At learning rate 0 nothing moves: both numbers can be worked out."""
    log, histories, split = data
    model = Table()
    result = fit(
        model, log, histories, split, seed=0, max_epochs=1, batching=by_row(999),
        learning_rate=0.0,
    )  # fmt: skip
    probability = torch.sigmoid(model.logit.weight.double())[log.item, 0].detach()
    losses = nn.functional.binary_cross_entropy(
        probability, torch.from_numpy(log.label).double(), reduction="none"
    ).numpy()
    [epoch] = result.epochs
    # fp32: a mean of a batch is off by at most its length in roundings.
    assert epoch.train_loss == pytest.approx(losses[split.train].mean(), rel=999 * 6e-8)
    rows = split.validation
    expected = evaluate(log.label[rows], score_rows(model, log, histories, rows))
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
    result = fit(
        model, log, Histories.from_log(log), split, seed=0, max_epochs=2,
        batching=by_row(7, max_events),
    )  # fmt: skip
    assert len(result.epochs) == 2
    once, again = np.split(np.array(model.shown[True]), 2)
    assert sorted(once) == sorted(again) == split.train.tolist()
    assert once.tolist() != again.tolist() != split.train.tolist()
    assert model.shown[False] == 2 * split.validation.tolist()
    assert model.widths == {True: max_events, False: max_events}


@pytest.mark.parametrize("patience", [1, 3])
def test_without_improvement_it_stops_after_patience(data, patience):
    log, histories, split = data
    result = fit(
        Table(), log, histories, split, seed=0, patience=patience, learning_rate=0.0
    )
    assert len(result.epochs) == 1 + patience
    assert result.best == 0


def test_the_bar_counts_the_epoch_that_it_stopped_after(data, capsys):
    fit(Table(), *data, seed=0, patience=2, learning_rate=0.0)
    [line] = capsys.readouterr().err.splitlines()
    assert " 3/20 " in line and "validation NE " in line


def test_the_best_epoch_s_weights_come_back(data):
    """Overfitted on purpose; the weights are those of a run that ends at the best."""
    log, histories, split = data
    options = dict(seed=0, batching=by_row(256), learning_rate=0.02, weight_decay=0.0)
    model = dlrm(log)
    result = fit(model, log, histories, split, **options)
    ne = [epoch.validation.ne for epoch in result.epochs]
    assert result.best == int(np.argmin(ne))
    assert len(ne) == result.best + 3 < 20
    again = dlrm(log)
    fit(again, log, histories, split, max_epochs=result.best + 1, **options)
    assert torch.equal(weights(model), weights(again))
    longer = dlrm(log)
    fit(longer, log, histories, split, max_epochs=result.best + 2, **options)
    assert torch.equal(weights(model), weights(longer))
    scores = score_rows(model, log, histories, split.validation)
    best = result.epochs[result.best].validation
    assert evaluate(log.label[split.validation], scores) == best


def test_no_epoch_leaves_the_model_alone(data):
    model = Table()
    before = weights(model).clone()
    result = fit(model, *data, seed=0, max_epochs=0)
    assert result.epochs == () and result.seconds == 0
    assert torch.equal(weights(model), before)


# --- seeds ---------------------------------------------------------------------------


def trained(data, encoder, *, init=0, seed=0):
    model = dlrm(data[0], encoder, model=Dropping, seed=init)
    fit(model, *data, seed=seed, max_epochs=2, batching=by_row(2048, 5))
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
        fit(model, log, histories, split, seed=0, max_epochs=1)
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
    fit(
        model, log, histories, split, seed=0, max_epochs=8, learning_rate=0.01,
        weight_decay=0.1, batching=by_row(512, max_events),
    )  # fmt: skip
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
        fit(model, *data, seed=0, learning_rate=0.02)


def test_a_wild_learning_rate_is_told(data):
    with pytest.raises(FloatingPointError, match=r"try a learning rate below 1e\+20"):
        fit(dlrm(data[0]), *data, seed=0, learning_rate=1e20)


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
    assert score_rows(model, log, histories, rows[:0]).shape == (0,)


def test_scores_are_probabilities_of_an_eval_mode_model(data):
    log, histories, split = data
    model = dlrm(log, model=Dropping).train()
    rows, state = split.test, torch.get_rng_state()
    scores = score_rows(model, log, histories, rows)
    assert not model.training
    assert ((scores > 0) & (scores < 1)).all()
    assert (score_rows(model.train(), log, histories, rows) == scores).all()
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


# --- checkpoints ---------------------------------------------------------------------


def test_a_checkpoint_brings_back_every_bit(data, tmp_path):
    log = data[0]
    model, other = dlrm(log, seed=0), dlrm(log, seed=1)
    path = tmp_path / "model.safetensors"
    save_checkpoint(model, path, {"epoch": "3"})
    load_checkpoint(other, path)
    assert torch.equal(weights(other), weights(model))
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_checkpoint_is_safetensors(data, tmp_path):
    """8 bytes of length, a JSON header, and the weights' bytes: nothing to execute."""
    model = dlrm(data[0])
    path = tmp_path / "model.safetensors"
    save_checkpoint(model, str(path), {"epoch": "3"})
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    assert header.pop("__metadata__") == {"epoch": "3"}
    assert set(header) == set(dict(model.named_parameters()))
    n_bytes = 4 * sum(p.numel() for p in model.parameters())
    assert len(content) == 8 + size + n_bytes


def test_a_save_that_fails_leaves_the_old_checkpoint(data, tmp_path, monkeypatch):
    log = data[0]
    model, path = dlrm(log, seed=0), tmp_path / "model.safetensors"
    save_checkpoint(model, path)

    def full_disk(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(training, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(dlrm(log, seed=1), path)
    other = dlrm(log, seed=2)
    load_checkpoint(other, path)
    assert torch.equal(weights(other), weights(model))


def test_another_model_s_checkpoint_is_refused(data, mean_pooling, tmp_path):
    log = data[0]
    path = tmp_path / "model.safetensors"
    save_checkpoint(dlrm(log), path)
    with pytest.raises(RuntimeError, match=r"size mismatch for top\.user\.weight"):
        load_checkpoint(dlrm(log, hidden=(9,)), path)
    with pytest.raises(RuntimeError, match=r"Missing key.*encoder\.item\.weight"):
        load_checkpoint(dlrm(log, mean_pooling), path)


def test_what_is_no_checkpoint_is_refused(data, tmp_path):
    log = data[0]
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError):
        load_checkpoint(dlrm(log), path)
    save_checkpoint(dlrm(log), path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SafetensorError):
        load_checkpoint(dlrm(log), path)
