"""Chapter 01's exercises: the stub is blank, a right answer passes, wrong ones fail."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recsys_edu.check import chapter_01 as check
from recsys_edu.data.synthetic import planted_world
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings
from recsys_edu.values import Values

CHAPTER = Path(__file__).parents[2] / "chapters" / "01_a_naive_dlrm.ipynb"


@pytest.fixture(scope="module")
def world():
    return planted_world(seed=0, n_impressions=900, n_users=30, n_items=40)


@pytest.fixture(scope="module")
def model(world) -> nn.Module:
    """The chapter's own model, by the definitions that it shows."""
    cells = {
        c["id"]: "".join(c["source"]) for c in json.loads(CHAPTER.read_text())["cells"]
    }
    names = {"torch": torch, "nn": nn, "Tensor": Tensor}
    for cell in ("pairwise-dots-code", "naive-code", "optimised-code"):
        exec(cells[cell], names)
    torch.manual_seed(0)
    users = world.log.users.without("user_id")
    return names["SplitDLRM"](Embeddings(users, world.log.items, None, 8))


@pytest.fixture(scope="module")
def rows(world) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(world.log.user), torch.from_numpy(world.log.item)


def stub(*_: object) -> None: ...


def said(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().out


# --- 1: dots ---


def dots(vectors, pairs):
    return [float(vectors[i] @ vectors[j]) for i, j in pairs(len(vectors))]


PAIRS = {
    "right": lambda n: [(i, j) for i in range(n) for j in range(i + 1, n)],
    "columns first": lambda n: [(i, j) for j in range(n) for i in range(j)],
    "backwards": lambda n: [(i, j) for i in range(n) for j in range(i + 1, n)][::-1],
    "neighbours": lambda n: list(pairwise(range(n))),
    "the first": lambda n: [(0, 1)] * (n * (n - 1) // 2),
    "diagonal too": lambda n: [(i, j) for i in range(n) for j in range(i, n)],
    "both ways": lambda n: [(i, j) for i in range(n) for j in range(n) if i != j],
}


@pytest.mark.parametrize("name", PAIRS)
def test_exercise_1(name):
    assert check.exercise_1(lambda v: dots(v, PAIRS[name])) == (name == "right")


def test_exercise_1_stub(capsys):
    assert not check.exercise_1(stub) and said(capsys).startswith("○")


# --- 2: a budget ---


def test_exercise_2(capsys):
    sizes = 3, 4, 16, 4000
    right = (4000 - 2 * 12 * 16) // (2 * 12 + 2)
    assert check.exercise_2(right, *sizes)
    no_output, no_dots, single = (4000 - 384) // 24, 4000 // 26, (4000 - 192) // 13
    for wrong in (right + 1, right - 1, no_output, no_dots, single, 3616 / 26):
        assert not check.exercise_2(wrong, *sizes)
    said(capsys)
    assert not check.exercise_2(..., *sizes) and said(capsys).startswith("○")


# --- 3: rows that repeat ---


def once(model, user, item):
    users, at_user = user.unique(return_inverse=True)
    items, at_item = item.unique(return_inverse=True)
    request = [part[at_user] for part in model.encode_request(users)]
    one = [part[at_item][:, None] for part in model.encode_items(items)]
    return model.fuse(one, request)[:, 0]


def as_they_come(model, user, item):
    return model(user, item[:, None])[:, 0]


def users_only(model, user, item):
    users, at = user.unique(return_inverse=True)
    request = [part[at] for part in model.encode_request(users)]
    return model.fuse(model.encode_items(item[:, None]), request)[:, 0]


def sorted_rows(model, user, item):
    order = torch.argsort(user)
    return once(model, user[order], item[order])


def mixed_up(model, user, item):
    return once(model, user.flip(0), item)


def every_pair(model, user, item):
    request = model.encode_request(user.unique())
    return model.fuse(model.encode_items(item.unique()), request)


def by_users_in_turn(model, user, item):
    """Right, but each user's items are encoded anew."""
    scores = torch.empty(len(user))
    for one in user.unique():
        mine = user == one
        scores[mine] = model(one[None], item[mine][None])[0]
    return scores


def test_exercise_3(model, capsys):
    assert check.exercise_3(once, model)
    assert not check.exercise_3(stub, model) and "○" in said(capsys)


@pytest.mark.parametrize(
    "wrong",
    [as_they_come, users_only, sorted_rows, mixed_up, every_pair, by_users_in_turn],
)
def test_exercise_3_wrong(model, wrong):
    assert not check.exercise_3(wrong, model)


# --- 4: an id that admits it does not know ---


@pytest.fixture
def with_id(world):
    features = world.log.users
    ranker = DLRM(Embeddings(features, world.log.items, None, 8))
    known = np.arange(world.log.n_users) < 20
    return SimpleNamespace(
        model=ranker, known=known, codes=features.sparse["user_id"], features=features
    )


def looking_up(given, codes):
    def attempt(model):
        sparse = given.features.sparse | {"user_id": codes}
        model.embeddings.users.values = Values(replace(given.features, sparse=sparse))
        return model

    return attempt


@pytest.mark.parametrize(
    "name", ["right", "all", "strangers", "as before", "known ones", "off by one"]
)
def test_exercise_4(with_id, name):
    known, codes = with_id.known, with_id.codes
    new = {
        "right": np.where(known, codes, 0),
        "all": np.zeros_like(codes),
        "strangers": np.where(known, codes, codes[0]),
        "as before": codes,
        "known ones": np.where(known, 0, codes),
        "off by one": np.where(known, np.maximum(codes - 1, 0), 0),
    }[name]
    attempt = looking_up(with_id, new)
    passed = check.exercise_4(attempt, with_id.model, known, len(known))
    assert passed == (name == "right")


def test_exercise_4_stub(with_id, capsys):
    known = with_id.known
    assert not check.exercise_4(stub, with_id.model, known, len(known))
    assert said(capsys).startswith("○")


# --- 5: a start that cannot learn ---


def filling(value):
    def attempt(model):
        nn.init.constant_(model.first.bias, value)
        return model

    return attempt


def afresh(model):
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


def larger_weights(model):
    with torch.no_grad():
        model.first.weight.mul_(1000)
    return model


def other_bias(model):
    nn.init.zeros_(model.rest[1].bias)
    return model


def slightly(model):
    nn.init.constant_(model.first.bias, check.DEAD / 2)
    return model


def test_exercise_5(model, rows, capsys):
    assert check.exercise_5(filling(0.0), model, *rows)
    assert not check.exercise_5(stub, model, *rows) and "○" in said(capsys)


@pytest.mark.parametrize(
    "wrong",
    [lambda m: m, filling(10.0), afresh, larger_weights, other_bias, slightly],
    ids=["nothing", "always on", "afresh", "larger", "other bias", "slightly"],
)
def test_exercise_5_wrong(model, rows, wrong):
    assert not check.exercise_5(wrong, model, *rows)
