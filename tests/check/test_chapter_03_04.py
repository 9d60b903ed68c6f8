"""Exercises of chapters 03 and 04: stubs are blank, solutions pass, wrong ones fail."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys_edu.batch import random_request
from recsys_edu.check import chapter_03, chapter_04
from recsys_edu.data.synthetic import planted_world
from recsys_edu.dlrm import DLRM
from recsys_edu.embeddings import Embeddings
from recsys_edu.encoders.append import AppendEncoder

CHAPTERS = Path(__file__).parents[2] / "chapters"
NOTEBOOKS = {"03": "03_concat_versus_append.ipynb", "04": "04_m_falcon.ipynb"}


def cells(chapter: str) -> dict[str, str]:
    notebook = json.loads((CHAPTERS / NOTEBOOKS[chapter]).read_text())
    return {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"]}


@pytest.fixture(scope="module")
def scope() -> Callable[[str], dict[str, Any]]:
    """What an exercise's cells find in the chapter's kernel."""
    torch.manual_seed(0)
    log = planted_world(seed=0, n_impressions=99, n_users=9, n_items=9).log
    embeddings = Embeddings(log.users, log.items, log.events, 8)
    model = DLRM(embeddings, AppendEncoder(8, layers=2, dropout=0.0)).eval()
    shared = dict(
        torch=torch, np=np, replace=replace, D=64, LAYERS=2, log=log, model=model
    )
    shared["new"] = random_request(log, 8, 9, seed=0)

    def of(chapter: str) -> dict[str, Any]:
        names = dict(shared, exercises=chapter_03 if chapter == "03" else chapter_04)
        if chapter == "03":
            exec(cells(chapter)["formulas"], names)
        return names

    return of


EXERCISES = [(chapter, n) for chapter in NOTEBOOKS for n in (1, 2, 3, 4)]


@pytest.mark.parametrize(("chapter", "n"), EXERCISES)
@torch.no_grad()
def test_a_stub_is_blank_and_the_solution_passes(
    chapter: str, n: int, scope: Callable, capsys: pytest.CaptureFixture
) -> None:
    exec(cells(chapter)[f"attempt-{n}"], scope(chapter))
    assert capsys.readouterr().out.startswith(f"○ Exercise {n}")
    exec(cells(chapter)[f"solution-{n}"], scope(chapter))  # it asserts
    assert capsys.readouterr().out.startswith(f"✓ Exercise {n}")


@pytest.mark.parametrize(("chapter", "n"), EXERCISES)
def test_the_answer_is_not_in_the_readers_cell(chapter: str, n: int) -> None:
    attempt = cells(chapter)[f"attempt-{n}"]
    assert len(attempt.splitlines()) <= 4 and "..." in attempt


# --- chapter 03 -----------------------------------------------------------------------


def past(q, k, n):
    return torch.where(q >= n, n - 1, q)


WINDOWS = {
    "a candidate stands behind the history": lambda q, k, n, w: (
        (k < n) & (k <= q) & (k > q - w)
    ),
    "one event too many": lambda q, k, n, w: (
        (k <= past(q, k, n)) & (k >= past(q, k, n) - w)
    ),
    "not itself": lambda q, k, n, w: (k < past(q, k, n)) & (k > past(q, k, n) - w),
    "no window": lambda q, k, n, w: (k < n) & (k <= q),
    "candidates read all": lambda q, k, n, w: (
        (k < n) & (k <= q) & ((k > q - w) | (q >= n))
    ),
}


@pytest.mark.parametrize("wrong", WINDOWS.values(), ids=list(WINDOWS))
def test_wrong_windows(wrong: Callable) -> None:
    assert not chapter_03.window_rule(wrong)


@pytest.mark.parametrize("wrong", [52, 54, 12, 1, "never", 53.5, "53"])
def test_wrong_counts(wrong: object) -> None:
    assert not chapter_03.sharing_pays(wrong, d=64, layers=2)
    assert chapter_03.sharing_pays(53, d=64, layers=2)


def softmax_with(fill: float, scale: bool = True) -> Callable:
    def attend(q, k, v, allowed):
        scores = q @ k.T * (q.shape[-1] ** -0.5 if scale else 1)
        return scores.masked_fill(~allowed, fill).softmax(-1) @ v

    return attend


def null_for_all(q, k, v, allowed):
    scores = (q @ k.T * q.shape[-1] ** -0.5).masked_fill(~allowed, -math.inf)
    null = torch.zeros(len(q), 1)
    return torch.cat([scores, null], -1).softmax(-1)[:, :-1] @ v


NOTHING = {
    "NaN": softmax_with(-math.inf),
    "the mean of what is forbidden": softmax_with(-1e9),
    "a null key that all read": null_for_all,
    "the query": lambda q, k, v, allowed: q,
    "zeros": lambda q, k, v, allowed: torch.zeros(len(q), v.shape[-1]),
    "no scale": lambda q, k, v, allowed: softmax_with(-math.inf, False)(
        q, k, v, allowed
    ).nan_to_num(),
    "no mask": lambda q, k, v, allowed: (q @ k.T / 2).softmax(-1) @ v,
}


@pytest.mark.parametrize("wrong", NOTHING.values(), ids=list(NOTHING))
def test_wrong_softmaxes(wrong: Callable) -> None:
    assert not chapter_03.nothing_to_read(wrong)


def test_zeros_may_be_had_in_other_ways() -> None:
    def mended(q, k, v, allowed):
        return softmax_with(-math.inf)(q, k, v, allowed).nan_to_num()

    assert chapter_03.nothing_to_read(mended)


def middle(keys: Callable, token: Callable = lambda tokens, shares: tokens) -> Callable:
    def last_layer(block, history, shares, tokens):
        k, v = block.keys_values(keys(history, shares))
        x = token(tokens, shares).transpose(0, 1)
        out = block(x, k.expand(len(x), -1, -1, -1), v.expand(len(x), -1, -1, -1), None)
        return out.transpose(0, 1)

    return last_layer


def each(history, shares):
    return history + shares.unsqueeze(1)


MIDDLES = {
    "append-cross": middle(lambda history, shares: history),
    "all by the first candidate": middle(lambda history, shares: history + shares[0]),
    "all by their mean": middle(lambda history, shares: history + shares.mean(0)),
    "the token too": middle(each, lambda tokens, shares: tokens + shares),
    "scaled": middle(lambda history, shares: history * shares.unsqueeze(1)),
}


@pytest.mark.parametrize("wrong", MIDDLES.values(), ids=list(MIDDLES))
def test_wrong_middle_ways(wrong: Callable) -> None:
    assert not chapter_03.middle_way(wrong)
    assert chapter_03.middle_way(middle(each))


# --- chapter 04 -----------------------------------------------------------------------


def extending(diagonal: Callable, keep: Callable = lambda old, new: new) -> Callable:
    """An answer whose mask is cut at a diagonal of (old, new)."""

    def extend(k, v, x, w_q, w_k, w_v):
        old, new = len(k), len(x)
        k, v = torch.cat([k, x @ w_k]), torch.cat([v, x @ w_v])
        allowed = torch.ones(new, old + new).tril(diagonal(old, new)).bool()
        scores = (x @ w_q @ k.T).masked_fill(~allowed, -math.inf)
        return k, v, scores.softmax(-1).nan_to_num() @ v

    return extend


right = extending(lambda old, new: old)


def only_new(*given):
    k, v, out = right(*given)
    return k[len(given[0]) :], v[len(given[1]) :], out


def in_front(k, v, x, w_q, w_k, w_v):
    _, _, out = right(k, v, x, w_q, w_k, w_v)
    return torch.cat([x @ w_k, k]), torch.cat([x @ w_v, v]), out


EXTENDED = {
    "new ones read each other's future": extending(lambda old, new: old + new),
    "not themselves": extending(lambda old, new: old - 1),
    "no offset": extending(lambda old, new: 0),
    "the new keys alone": only_new,
    "new keys in front": in_front,
    "scaled": lambda k, v, x, q, *w: right(k, v, x, q / 2, *w),
    "keys and values change places": lambda k, v, *rest: right(v, k, *rest),
}


@pytest.mark.parametrize("wrong", EXTENDED.values(), ids=list(EXTENDED))
def test_wrong_extensions(wrong: Callable) -> None:
    assert not chapter_04.extend_layer(wrong)
    assert chapter_04.extend_layer(right)


SHARES = {
    "the cut itself": lambda S, cut: cut,
    "times S": lambda S, cut: min(cut * S, 1.0),
    "more than all": lambda S, cut: cut / (1 - 1 / S) if S > 1 else math.inf,
    "never": lambda S, cut: math.inf,
    "the other way": lambda S, cut: cut * (1 - 1 / S),
    "clipped": lambda S, cut: min(1.0, cut / (1 - 1 / S)) if S > 1 else 1.0,
}


@pytest.mark.parametrize("wrong", SHARES.values(), ids=list(SHARES))
def test_wrong_shares(wrong: Callable) -> None:
    assert not chapter_04.share_for(wrong)


FOOLS = {
    "the same history": lambda h: h,
    "one event less": lambda h: h.map(lambda t: t[:, 1:]),
    "events under padding": lambda h: replace(h, mask=h.mask & False),
    "other times, which no vector holds": lambda h: replace(
        h, timestamp=h.timestamp + 1
    ),
    "no such item": lambda h: replace(h, item=h.item + 10**6),
}


@pytest.mark.parametrize("wrong", FOOLS.values(), ids=list(FOOLS))
@torch.no_grad()
def test_a_cache_that_is_not_fooled(wrong: Callable, scope: Callable) -> None:
    names = scope("04")
    assert not chapter_04.fooled(wrong, names["model"], names["new"])


def columns(request):
    history = request.history
    every = (history.item, history.action, history.timestamp)
    return tuple(tuple(c[0].tolist()) for c in every)


KEYS = {
    "user and number": lambda r, v: (int(r.user), r.history.item.shape[1], v),
    "the object": lambda r, v: (id(r), v),
    "the last event": lambda r, v: (
        int(r.user), v, r.history.item.shape[1], *(c[-1] for c in columns(r))
    ),
    "items alone": lambda r, v: (int(r.user), v, columns(r)[0]),
    "no times": lambda r, v: (int(r.user), v, columns(r)[:2]),
    "a set of events": lambda r, v: (int(r.user), v, *map(frozenset, columns(r))),
    "candidates too": lambda r, v: (
        int(r.user), v, columns(r), tuple(r.candidates[0].tolist())
    ),
    "now too": lambda r, v: (int(r.user), v, columns(r), int(r.timestamp)),
    "no weights": lambda r, v: (int(r.user), columns(r)),
    "no user": lambda r, v: (v, columns(r)),
    "tensors": lambda r, v: (r.user, v, r.history.item),
    "a list": lambda r, v: [int(r.user), v, columns(r)],
}  # fmt: skip


@pytest.mark.parametrize("wrong", KEYS.values(), ids=list(KEYS))
def test_wrong_keys(wrong: Callable, scope: Callable) -> None:
    assert not chapter_04.cache_key(wrong, scope("04")["new"])


def test_a_right_key(scope: Callable) -> None:
    def key(request, version):
        return hash((int(request.user), columns(request), version))

    assert chapter_04.cache_key(key, scope("04")["new"])
