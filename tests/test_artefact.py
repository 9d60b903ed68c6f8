"""A ranker saved is the ranker loaded, and any other one is refused by name."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from recsys_edu.artefact import load_ranker, load_weights, save_ranker
from recsys_edu.data import Features
from recsys_edu.data.synthetic import planted_world
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings
from recsys_edu.encoders.append import AppendEncoder
from recsys_edu.encoders.hstu import HSTU
from recsys_edu.encoders.lime import LimeMHA, LimeXOR
from recsys_edu.encoders.pooling import MeanPooling
from recsys_edu.encoders.two_tower import TwoTower
from recsys_edu.positions import Absolute, TimeGap

LOG = planted_world(seed=1, n_impressions=400, n_users=12, n_items=30).log
ENCODERS = [
    "mean pooling", "DIN", "concat", "append-self", "append-causal", "append-cross",
    "HSTU", "two-tower", "LIME-MHA", "LIME-XOR", "truncated MHA", "LREA", "naive",
]  # fmt: skip


def made(encoder=None, *, log=LOG, positions=None, d=8, hidden=(64,)):
    embeddings = Embeddings(log.users, log.items, log.events, d, positions=positions)
    return DLRM(embeddings, encoder, hidden=hidden).eval()


@pytest.fixture
def path(tmp_path):
    """Where a ranker may be saved."""
    return tmp_path / "ranker.safetensors"


@torch.no_grad()
@pytest.mark.parametrize("name", ENCODERS)
def test_what_is_loaded_scores_to_the_bit(make_model, draw_request, path, name):
    model = make_model(name, positions="absolute" if name != "HSTU" else "time gap")
    save_ranker(model, path)
    again = load_ranker(path)
    request = draw_request(0, 3, 5, 4, side="right")
    assert not again.training and torch.equal(again(request), model(request))
    assert type(again.encoder) is type(model.encoder)
    if model.encoder is not None:
        assert again.encoder.config == model.encoder.config


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_ranker_keeps_its_type(make_model, draw_request, path, dtype):
    model = make_model("LIME-MHA").to(dtype)
    save_ranker(model, path)
    request = draw_request(0, 2, 5, 4, side="right")
    scores = load_ranker(path)(request)
    assert scores.dtype == dtype and torch.equal(scores, model(request))


def test_it_needs_no_log_and_no_pickle(path, tmp_path):
    """Another process, which knows the file and the source's ids, scores the same."""
    people = Features.fit(["ann", "bob"], {"age": [30, 50]}, {"city": ["b", "a"]})
    films = Features.fit([10**12, 7], sparse={"kind.of": [["x", "y"], []]})
    torch.manual_seed(0)
    embeddings = Embeddings(people, films, LOG.events, 8, positions=Absolute(5, 8))
    model = DLRM(embeddings, LimeXOR(8, r=2, layers=1)).eval()
    model.embeddings.items.values.add([8], sparse={"kind.of": [["y"]]})
    given = dict(now=LOG.events.last, items=[7], actions=[1], times=[99])
    save_ranker(model, path)
    script = (
        "import sys, torch; from recsys_edu.artefact import load_ranker\n"
        f"ranker = load_ranker({str(path)!r})\n"
        f"request = ranker.request('bob', [8, 10**12], **{given})\n"
        "print(ranker(request).tolist())"
    )
    run = [sys.executable, "-c", script]
    printed = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    expected = model(model.request("bob", [8, 10**12], **given)).tolist()
    assert json.loads(printed) == expected


def test_training_goes_on_from_a_loaded_ranker_as_from_the_saved_one(path):
    model = made(AppendEncoder(8, dropout=0.0))
    save_ranker(model, path)
    again = load_ranker(path)
    for ranker in (model, again):
        request = ranker.request(3, [4, 5], now=LOG.events.last)
        ranker(request).sum().backward()
    for mine, other in zip(model.parameters(), again.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None)
        assert mine.grad is None or torch.equal(mine.grad, other.grad)


def test_a_save_that_fails_leaves_the_old_file(path, monkeypatch):
    save_ranker(made(MeanPooling()), path)
    before = path.read_bytes()

    def fail(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("recsys_edu.artefact.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_ranker(made(), path)
    assert path.read_bytes() == before


OTHERS = {
    "encoder": (
        lambda: TwoTower(8),
        "encoder class is 'recsys_edu.*TwoTower' here",
    ),
    "no encoder": (lambda: None, "encoder is absent here and"),
    "causal": (
        lambda: AppendEncoder(8, causal=False),
        "encoder argument causal is False here and True in the file",
    ),
    "heads": (
        lambda: AppendEncoder(8, heads=4),
        "encoder argument heads is 4 here and 2 in the file",
    ),
}


@pytest.mark.parametrize("encoder, message", OTHERS.values(), ids=OTHERS.keys())
def test_another_encoder_is_refused_by_name(path, encoder, message):
    save_ranker(made(AppendEncoder(8)), path)
    other = made(encoder())
    before = {name: t.clone() for name, t in other.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_weights(other, path)
    assert all(torch.equal(t, before[name]) for name, t in other.state_dict().items())
    same = made(AppendEncoder(8))
    load_weights(same, path)
    file = load_file(path)
    for name, weight in same.state_dict().items():
        assert torch.equal(weight, file[f"weights.{name}"])


def test_another_phi_is_refused_by_name(path):
    save_ranker(made(LimeMHA(8, r=2)), path)
    with pytest.raises(ValueError, match="phi is 'silu' here and 'softmax' in"):
        load_weights(made(LimeMHA(8, r=2, phi="silu")), path)


def test_another_width_hidden_positions_or_type_is_refused_by_name(path):
    save_ranker(made(HSTU(8), positions=TimeGap(8)), path)
    for other, message in (
        (made(HSTU(4), d=4, positions=TimeGap(4)), "width is 4 here and 8 in the file"),
        (made(HSTU(8), hidden=(9,), positions=TimeGap(8)), r"hidden is \[9\] here"),
        (made(HSTU(8)), "positions is absent here"),
        (made(HSTU(8), positions=Absolute(9, 8)), "positions class is"),
        (made(HSTU(8), positions=TimeGap(8)).double(), "type is 'float64' here"),
    ):
        with pytest.raises(ValueError, match=message):
            load_weights(other, path)


def changed(**log):
    """The log with other users, items or actions."""
    return type(
        "Log", (), dict(users=LOG.users, items=LOG.items, events=LOG.events) | log
    )


def test_another_coding_is_refused_by_name(path):
    """Also where all shapes are the same: an id more and one less, two swapped."""
    save_ranker(made(), path)
    ids = LOG.items.ids
    topics = LOG.items.sparse["topic"]
    swapped = Features.fit(
        ids, sparse={"item_id": ids, "topic": topics}, categories={"item_id": ids[::-1]}
    )
    priced = Features.fit(ids, {"price": ids}, {"item_id": ids, "topic": topics})
    other = changed(events=type(LOG.events)((1, 0), LOG.events.first, LOG.events.last))
    for log, message in (
        (changed(items=swapped), "items sparse item_id categories is '30"),
        (changed(items=priced), "items dense price is"),
        (changed(users=LOG.users.without("segment")), "users sparse segment is absent"),
        (other, r"events actions is \[1, 0\] here and \[0, 1\] in the file"),
    ):
        with pytest.raises(ValueError, match=message):
            load_weights(made(log=log), path)


def test_values_may_have_grown_since(path):
    model = made()
    save_ranker(model, path)
    model.embeddings.items.values.add([1000])
    load_weights(model, path)
    assert len(model.embeddings.items.values) == 31


def test_the_advice_on_an_older_file_works(path):
    """Tensors alone, with no row for the unknown action."""
    model = made(AppendEncoder(8))
    name = "embeddings.actions.weight"
    old = model.state_dict() | {name: model.state_dict()[name][1:].clone()}
    save_file(old, path)
    with pytest.raises(ValueError, match=r"no ranker.* row of zeros before .*actions"):
        load_ranker(path)
    tensors, other = load_file(path), made(AppendEncoder(8))
    row = torch.zeros(1, 8)
    other.load_state_dict(tensors | {name: torch.cat([row, tensors[name]])})
    save_ranker(other, path)
    request = model.request(3, [4, 5], now=LOG.events.last)
    assert torch.equal(load_ranker(path)(request), model(request))


def test_another_format_is_refused_with_what_to_do(path):
    save_ranker(made(), path)
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["ranker"])
    save_file(load_file(path), path, {"ranker": json.dumps(about | {"format": 2})})
    with pytest.raises(ValueError, match=r"format 2, and .* reads format 1: load"):
        load_ranker(path)


def test_a_damaged_or_missing_file_is_named(path):
    with pytest.raises(FileNotFoundError, match=r"ranker\.safetensors"):
        load_ranker(path)
    save_ranker(made(), path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"cannot be read: .* damaged"):
        load_ranker(path)


def test_a_reader_s_own_encoder_is_found_if_it_was_imported(path):
    class Mine(MeanPooling):
        def __init__(self, size=3):
            super().__init__()

    model = made(Mine(size=4))
    save_ranker(model, path)
    assert load_ranker(path).encoder.config == {"size": 4}
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["ranker"])
    about["encoder"]["class"] = "somewhere.Else"
    save_file(load_file(path), path, {"ranker": json.dumps(about)})
    with pytest.raises(ValueError, match=r"somewhere.Else, which is not known here"):
        load_ranker(path)


def test_an_argument_that_json_cannot_hold_is_named(path):
    class Mine(MeanPooling):
        def __init__(self, table):
            super().__init__()

    with pytest.raises(ValueError, match=r"Mine\(table=.* cannot be saved"):
        save_ranker(made(Mine(np.zeros(2))), path)
    assert not path.exists()
