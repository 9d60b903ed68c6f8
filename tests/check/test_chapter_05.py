"""The exercises of *Amortized training*: stubs wait, solutions pass, slips do not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from recsys_edu.batch import user_batches
from recsys_edu.check import chapter_05
from recsys_edu.data.interactions import Histories
from recsys_edu.data.synthetic import planted_world

LOG = planted_world(seed=0, n_impressions=300, n_users=6, n_items=9).log
DATA = LOG, Histories.from_log(LOG), np.arange(len(LOG))
BATCHING = partial(user_batches, max_events=8, max_candidates=5, max_tokens=200)


def off_by_one(attempt: Callable) -> bool:
    return chapter_05.off_by_one(attempt, BATCHING, *DATA)


def stub(*args, **options): ...


# --- right ----------------------------------------------------------------------------


def steps(seconds):
    return np.searchsorted(seconds, seconds, side="left").tolist()


def staircase(q, k, v, visible):
    mask = torch.arange(len(k)) < visible[:, None]
    scores = q @ k.T / math.sqrt(q.shape[1])
    weights = scores.masked_fill(~mask, -1e9).softmax(-1)
    return (weights * mask) @ v


def weighted(loss, row):
    real = row >= 0
    return loss.where(real, 0).sum() / real.sum()


def rewritten(history, future, n_actions):
    other = (history.action + 1) % n_actions
    return replace(history, action=other.where(future, history.action))


def leaks(model, request, n_actions, late=lambda visible: visible, of=slice(None)):
    history, before = request.history, model(request)
    place = torch.arange(history.item.shape[1])
    for m in range(before.shape[1]):
        future = place >= late(request.visible[:, m, None])
        after = model(replace(request, history=rewritten(history, future, n_actions)))
        if not torch.equal(after[of, m], before[of, m]):
            return True
    return False


def seeing_itself(*args, **options) -> Iterator:
    for batch in BATCHING(*args, **options):
        request = batch.request
        yield replace(batch, request=replace(request, visible=request.visible + 1))


RIGHT = [
    (chapter_05.visible, steps),
    (chapter_05.visible, lambda s: np.searchsorted(s, s, side="left")),
    (chapter_05.read, staircase),
    (chapter_05.masked_mean, weighted),
    (chapter_05.masked_mean, lambda loss, row: loss[row >= 0].mean()),
    (chapter_05.reads_future, leaks),
    (off_by_one, seeing_itself),
]


@pytest.mark.parametrize(("check", "attempt"), RIGHT)
def test_a_right_answer_passes(check, attempt, capsys):
    assert check(attempt) is True
    assert capsys.readouterr().out.startswith("✓")


@pytest.mark.parametrize("check", dict.fromkeys(check for check, _ in RIGHT))
@pytest.mark.parametrize("attempt", [stub, None, ...])
def test_a_stub_waits(check, attempt, capsys):
    assert check(attempt) is False
    assert capsys.readouterr().out.startswith("○")


# --- wrong ----------------------------------------------------------------------------


def nan_of_nothing(q, k, v, visible):
    """A softmax over no key is NaN."""
    mask = visible_of(k, visible)
    scores = (q @ k.T / math.sqrt(q.shape[1])).masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ v


def mean_of_nothing(q, k, v, visible):
    """A row that may read nothing reads all events, at equal weights."""
    mask = visible_of(k, visible)
    scores = (q @ k.T / math.sqrt(q.shape[1])).masked_fill(~mask, -1e9)
    return scores.softmax(-1) @ v


def attend(q, k, v, mask, *, scale=True, dim=-1):
    scores = q @ k.T / (math.sqrt(q.shape[1]) if scale else 1)
    return (scores.masked_fill(~mask, -1e9).softmax(dim) * mask) @ v


def visible_of(k, visible, more=0):
    return torch.arange(len(k)) < visible[:, None] + more


def every_event_at_once(model, request, n_actions):
    """Rewrites all events: what may be read changes too."""
    future = torch.ones_like(request.history.mask)
    after = replace(request, history=rewritten(request.history, future, n_actions))
    return not torch.equal(model(request), model(after))


def after_the_last(model, request, n_actions):
    """Rewrites only what no impression of the run may read."""
    place = torch.arange(request.history.item.shape[1])
    future = place >= request.visible.amax(1, keepdim=True)
    after = replace(request, history=rewritten(request.history, future, n_actions))
    return not torch.equal(model(request), model(after))


def first_impression(model, request, n_actions):
    future = torch.arange(request.history.item.shape[1]) >= request.visible[:, :1]
    after = replace(request, history=rewritten(request.history, future, n_actions))
    return not torch.equal(model(request)[:, 0], model(after)[:, 0])


def early_half(model, request, n_actions):
    """As the page does it for one user: late events rewritten, early scores seen."""
    history, half = request.history, 3
    future = torch.arange(history.item.shape[1]) >= half
    after = model(replace(request, history=rewritten(history, future, n_actions)))
    early = request.visible <= half
    return not torch.equal(after[early], model(request)[early])


def shifted(by: Callable, **kept) -> Callable:
    def batches(*args, **options):
        for batch in BATCHING(*args, **options | kept):
            seen = by(batch.request.visible)
            yield replace(batch, request=replace(batch.request, visible=seen))

    return batches


def one_short(*args, **options):
    yield from list(seeing_itself(*args, **options))[:-1]


def other_history(*args, **options):
    for batch in seeing_itself(*args, **options):
        history = batch.request.history
        history = replace(history, action=history.action.flip(1))
        yield replace(batch, request=replace(batch.request, history=history))


WRONG = [
    (chapter_05.visible, lambda s: list(range(len(s)))),  # ties read each other
    (chapter_05.visible, lambda s: np.searchsorted(s, s, side="right").tolist()),
    (chapter_05.visible, lambda s: [len({x for x in s if x < t}) for t in s]),
    (chapter_05.visible, lambda s: [max(0, i - 1) for i in range(len(s))]),
    (chapter_05.visible, lambda s: [0, 1, 1, 3]),
    (chapter_05.read, nan_of_nothing),
    (chapter_05.read, mean_of_nothing),
    (
        chapter_05.read,
        lambda q, k, v, seen: scaled_dot_product_attention(q, k, v),
    ),
    (chapter_05.read, lambda q, k, v, n: attend(q, k, v, visible_of(k, n, 1))),
    (
        chapter_05.read,
        lambda q, k, v, n: attend(q, k, v, visible_of(k, n), scale=False),
    ),
    (chapter_05.read, lambda q, k, v, n: attend(q, k, v, visible_of(k, n), dim=0)),
    (chapter_05.read, lambda q, k, v, n: staircase(q, k, v, n).detach()),
    (chapter_05.read, lambda q, k, v, n: torch.zeros_like(q)),
    (  # masked after the softmax, and not normalised again
        chapter_05.read,
        lambda q, k, v, n: (
            ((q @ k.T / math.sqrt(q.shape[1])).softmax(-1) * visible_of(k, n)) @ v
        ),
    ),
    (chapter_05.masked_mean, lambda loss, row: loss.mean()),
    (chapter_05.masked_mean, lambda loss, row: loss[row > 0].mean()),
    (chapter_05.masked_mean, lambda loss, row: (loss * (row >= 0)).sum() / row.numel()),
    (chapter_05.masked_mean, lambda loss, row: (loss * (row >= 0)).mean()),
    (  # inf * 0 is NaN
        chapter_05.masked_mean,
        lambda loss, row: (loss * (row >= 0)).sum() / (row >= 0).sum(),
    ),
    (  # the mean of the runs' means
        chapter_05.masked_mean,
        lambda loss, row: (loss.where(row >= 0, 0).sum(1) / (row >= 0).sum(1)).mean(),
    ),
    (chapter_05.masked_mean, lambda loss, row: loss.where(row >= 0, 0).sum()),
    (chapter_05.reads_future, lambda *_: True),
    (chapter_05.reads_future, lambda *_: False),
    (chapter_05.reads_future, every_event_at_once),
    (chapter_05.reads_future, after_the_last),
    (chapter_05.reads_future, first_impression),
    (chapter_05.reads_future, early_half),
    (chapter_05.reads_future, partial(leaks, late=lambda visible: visible + 1)),
    (chapter_05.reads_future, partial(leaks, late=lambda visible: visible - 1)),
    (chapter_05.reads_future, partial(leaks, of=0)),  # the first user alone
    (off_by_one, BATCHING),
    (off_by_one, shifted(lambda seen: seen + 2)),
    (off_by_one, shifted(lambda seen: seen - 1)),
    (off_by_one, shifted(lambda seen: (seen + 1).clamp(max=8))),
    (off_by_one, shifted(lambda seen: None)),
    (off_by_one, shifted(lambda seen: seen + 1, generator=None)),
    (off_by_one, shifted(lambda seen: seen + 1, max_candidates=4)),
    (off_by_one, one_short),
    (off_by_one, other_history),
]


@pytest.mark.parametrize(("check", "attempt"), WRONG)
def test_a_wrong_answer_is_told(check, attempt, capsys):
    assert check(attempt) is False
    assert capsys.readouterr().out.startswith("✗")
