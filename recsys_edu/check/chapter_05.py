"""The exercises of *Amortized training*: what is expected, and where answers go wrong.

Each function takes the reader's attempt, shows a card and returns whether it is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from recsys_edu.batch import History, Impressions, Request
from recsys_edu.check import function

__all__ = ["masked_mean", "off_by_one", "read", "reads_future", "visible"]

Scores = Callable[[Request], Tensor]
"""A ranker, as far as a test for leaks is concerned: a request -> [B, M]."""


def visible(attempt: Callable[..., object]) -> bool:
    """Exercise 1: one user's sorted seconds -> how many events each may read."""
    draw = np.random.default_rng(0)
    seconds = [
        [1, 3, 3, 8],
        [5, 5, 5],
        [],
        [2, 2, 4, 4, 4, 9],
        np.sort(draw.integers(0, 40, 60)).tolist(),
    ]
    return function("Exercise 1", attempt, _earlier, [(each,) for each in seconds])


def _earlier(seconds: list[int]) -> list[int]:
    return [sum(s < t for s in seconds) for t in seconds]


def read(attempt: Callable[..., object]) -> bool:
    """Exercise 2: q [M, d], k and v [N, d], visible [M] -> [M, d], and its gradients.

    An impression that may read nothing reads zeros, and sends back no gradient.
    """
    draw = torch.Generator().manual_seed(0)
    cases = []
    for counts, n, size in (
        ([0, 1, 1, 3], 4, 1.0),
        ([3, 0, 2], 3, 1.0),
        ([5, 5], 5, 8.0),
        ([0, 0], 2, 1.0),
        ([0], 0, 1.0),
    ):
        shapes = (len(counts), 4), (n, 4), (n, 4)
        q, k, v = (size * torch.randn(s, generator=draw) for s in shapes)
        cases.append((q, k, v, torch.tensor(counts)))
    with_gradients = partial(_with_gradients, attempt)
    if attempt is None or attempt is ...:
        with_gradients = attempt
    return function("Exercise 2", with_gradients, _read_alone, cases)


def _read_alone(q: Tensor, k: Tensor, v: Tensor, counts: Tensor) -> object:
    def one_by_one(q: Tensor, k: Tensor, v: Tensor, counts: Tensor) -> Tensor:
        rows = []
        for query, n in zip(q, counts.tolist(), strict=True):
            weights = (k[:n] @ query / math.sqrt(q.shape[1])).softmax(0)
            rows.append(weights @ v[:n])
        return torch.stack(rows)

    return _with_gradients(one_by_one, q, k, v, counts)


def _with_gradients(
    attempt: Callable[..., object], q: Tensor, k: Tensor, v: Tensor, counts: Tensor
) -> object:
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    out = attempt(*inputs, counts)
    if not isinstance(out, Tensor):
        return out
    gradients = [torch.zeros_like(tensor) for tensor in inputs]
    if out.requires_grad:
        weight = torch.arange(1.0, 1 + out.numel()).reshape(out.shape)
        found = torch.autograd.grad((out * weight).sum(), inputs, allow_unused=True)
        gradients = [
            none if got is None else got
            for none, got in zip(gradients, found, strict=True)
        ]
    names = ("gradient of q", "gradient of k", "gradient of v")
    return {"read": out.detach()} | dict(zip(names, gradients, strict=True))


def masked_mean(attempt: Callable[..., object]) -> bool:
    """Exercise 3: losses and rows [B, M] -> the mean over what is no padding."""
    draw = torch.Generator().manual_seed(0)
    cases = []
    for rows, waste in (
        ([[4, 7, -1, -1], [1, 2, 3, 5], [9, -1, -1, -1]], 0.5),
        ([[0, -1]], 2.0),
        ([[6, 0, 2], [8, -1, -1]], math.inf),
        ([[3, -1], [5, 2]], math.nan),
    ):
        row = torch.tensor(rows)
        loss = torch.rand(row.shape, generator=draw)
        cases.append((loss.masked_fill(row < 0, waste), row))
    return function("Exercise 3", attempt, _indexed_mean, cases)


def _indexed_mean(loss: Tensor, row: Tensor) -> Tensor:
    return loss[row >= 0].mean()


ACTIONS = 5


def reads_future(attempt: Callable[..., object]) -> bool:
    """Exercise 4: (model, request, n_actions) -> whether a score knows later actions.

    Tried on models that leak in ways of their own, and on two that do not.
    """
    models: list[tuple[Scores, bool]] = [
        (_honest, False),
        (_honest_order, False),
        (_all_events, True),
        (_one_too_many, True),
        (_last_impression, True),
        (_second_user, True),
        (_second_event, True),
    ]
    request = _request()
    leaks = dict(models)

    def truth(model: Scores, request: Request, n_actions: int) -> bool:
        return leaks[model]

    cases = [(model, request, ACTIONS) for model, _ in models]
    return function("Exercise 4", attempt, truth, cases)


def _request() -> Request:
    """Two users, six events and four; some impressions tie, some read nothing."""
    draw = torch.Generator().manual_seed(0)
    mask = torch.arange(6) < torch.tensor([[6], [4]])
    history = History(
        item=torch.randint(1, 9, (2, 6), generator=draw),
        action=torch.randint(ACTIONS, (2, 6), generator=draw).where(mask, 0),
        timestamp=torch.arange(6).expand(2, 6),
        mask=mask,
    )
    return Request(
        user=torch.tensor([0, 1]),
        timestamp=torch.tensor([[0, 2, 2, 5], [0, 1, 3, 3]]),
        candidates=torch.randint(1, 9, (2, 4), generator=draw),
        history=history,
        visible=torch.tensor([[0, 2, 2, 5], [0, 1, 3, 3]]),
    )


def _prefixes(request: Request, more: Tensor | int = 0) -> Tensor:
    """[B, M] a sum over the events that each may read, and over ``more`` of them."""
    history = request.history
    value = (history.item * (1.0 + history.action)).where(history.mask, 0)
    total = torch.cat([value.new_zeros(len(value), 1), value.cumsum(1)], dim=1)
    until = (request.visible + more).clamp(max=value.shape[1])
    return total.gather(1, until) * (1.0 + request.candidates)


def _honest(request: Request) -> Tensor:
    return _prefixes(request)


def _honest_order(request: Request) -> Tensor:
    history = request.history
    place = torch.arange(1, 1 + history.item.shape[1]).expand_as(history.item)
    return _prefixes(replace(request, history=replace(history, item=place)))


def _all_events(request: Request) -> Tensor:
    return _prefixes(request, request.history.item.shape[1])


def _one_too_many(request: Request) -> Tensor:
    return _prefixes(request, 1)


def _last_impression(request: Request) -> Tensor:
    more = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0]])
    return _prefixes(request, more)


def _second_user(request: Request) -> Tensor:
    return _prefixes(request, torch.tensor([[0, 0, 0, 0], [0, 3, 0, 0]]))


def _second_event(request: Request) -> Tensor:
    """What an early event is has been changed by a late one, as if it had read it."""
    action = request.history.action.clone()
    action[0, 1] += action[0, 4]
    return _prefixes(replace(request, history=replace(request.history, action=action)))


def off_by_one(
    attempt: Callable[..., Iterator[Impressions] | None],
    batching: Callable[..., Iterator[Impressions]],
    *data: object,
) -> bool:
    """Exercise 5: batches as ``batching`` makes them of ``data``, one event too many.

    All else must be the same: the rows, their order under a generator, the history.
    """
    if attempt is None or attempt is ...:
        return function("Exercise 5", attempt, batching, [])

    def mine(seed: int) -> list[dict[str, object]] | None:
        made = attempt(*data, generator=np.random.default_rng(seed))
        return made if made is None or made is ... else [_parts(x) for x in made]

    def expected(seed: int) -> list[dict[str, object]]:
        made = batching(*data, generator=np.random.default_rng(seed))
        parts = [_parts(batch) for batch in made]
        return [x | {"visible": x["visible"] + 1} for x in parts]

    return function("Exercise 5", mine, expected, [(0,)])


def _parts(batch: Impressions) -> dict[str, object]:
    request = batch.request
    parts = {"row": batch.row, "label": batch.label, "visible": request.visible}
    for tree, names in (
        (request, ("user", "candidates", "timestamp")),
        (request.history, ("item", "action", "timestamp", "mask")),
    ):
        kind = type(tree).__name__.lower()
        parts |= {f"{kind}.{name}": getattr(tree, name) for name in names}
    return parts
