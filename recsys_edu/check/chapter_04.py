"""The exercises of *M-FALCON*: what is expected, and wrong turns.

Each function takes the reader's attempt, shows a card and returns whether it is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import replace

import torch
from torch import Tensor

from recsys_edu.batch import History, Request
from recsys_edu.check import claim, function
from recsys_edu.dlrm import DLRM
from recsys_edu.scoring.strategies import amortized


def extend_layer(attempt: Callable[..., object]) -> bool:
    """Exercise 1: a causal layer's keys and values, carried on to new events."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for old, new in ((4, 1), (3, 3), (0, 2)):
        shapes = [(old, 4), (old, 4), (new, 4), (4, 4), (4, 4), (4, 4)]
        cases.append(tuple(torch.randn(s, generator=generator) for s in shapes))
    return function("Exercise 1", attempt, _extended, cases)


def _extended(
    k: Tensor, v: Tensor, x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    old, new = len(k), len(x)
    k, v = torch.cat([k, x @ w_k]), torch.cat([v, x @ w_v])
    later = torch.ones(new, old + new).triu(old + 1).bool()
    scores = (x @ w_q @ k.T).masked_fill(later, float("-inf"))
    return k, v, scores.softmax(-1) @ v


def share_for(attempt: Callable[..., object]) -> bool:
    """Exercise 2: the share of a request that a speed-up and a cut tell."""
    cases = [(121.0, 0.3), (2.0, 0.3), (4.0, 0.75), (1.2, 0.3), (1.0, 0.1), (1e9, 0.9)]
    return function("Exercise 2", attempt, _share, cases)


def _share(speed_up: float, cut: float) -> float:
    most = 1 - 1 / speed_up  # what falls if the part is all of the request
    return cut / most if cut <= most else math.inf


def fooled(
    attempt: Callable[[History], History | None], model: DLRM, request: Request
) -> bool:
    """Exercise 3: a history that a cache by user and count serves wrongly."""
    known = request.history
    try:
        history = attempt(known.map(torch.clone))
        if history is None:
            return claim("Exercise 3", ..., "")
        if history.item.shape != known.item.shape or not history.mask.all():
            hint = "another number of events is another key: this cache misses it"
            return claim("Exercise 3", False, hint)
        fooling = replace(request, history=history)
        right = amortized(model, fooling, micro_batch=256)
    except Exception as error:
        return claim("Exercise 3", False, f"{type(error).__name__}: {error}")
    kept = model.encode_request(request).code
    side = model.encode_request(fooling, kept)
    served = model.fuse(model.encode_items(fooling.candidates), side)
    off = (served - right).abs().max() > 1e-3 * right.std()
    return claim("Exercise 3", bool(off), "what was kept still gives the right scores")


def cache_key(
    attempt: Callable[[Request, Hashable], Hashable], request: Request
) -> bool:
    """Exercise 4: a key that is the same if and only if the kept code still holds."""
    history = request.history

    def having(**columns: Tensor) -> Request:
        return replace(request, history=replace(history, **columns))

    same = {
        "the same request again": request.map(torch.clone),
        "other candidates": replace(request, candidates=request.candidates.flip(1) + 1),
        "the same history a minute later": replace(
            request, timestamp=request.timestamp + 60
        ),
    }
    other = {
        "another user": replace(request, user=request.user + 1),
        "one event less": replace(request, history=history.map(lambda t: t[:, 1:])),
        "the first event on another item": having(item=_first_moved(history.item)),
        "the first event with another action": having(
            action=_first_moved(history.action)
        ),
        "the first event at another time": having(
            timestamp=_first_moved(history.timestamp)
        ),
        "the items in another order": having(item=history.item.flip(1)),
    }
    try:
        key = attempt(request, "weights of 9:00")
        if key is None:
            return claim("Exercise 4", ..., "")
        for what, case in same.items():
            if {key: 1}.get(attempt(case, "weights of 9:00")) is None:
                hint = f"{what}: the code would still hold, but the key is another"
                return claim("Exercise 4", False, hint)
        for what, case in other.items():
            if {key: 1}.get(attempt(case, "weights of 9:00")) is not None:
                hint = f"{what}: a wrong code would be served"
                return claim("Exercise 4", False, hint)
        new = {key: 1}.get(attempt(request.map(torch.clone), "weights of 10:00"))
    except Exception as error:
        return claim("Exercise 4", False, f"{type(error).__name__}: {error}")
    return claim("Exercise 4", new is None, "other weights: a wrong code is served")


def _first_moved(column: Tensor) -> Tensor:
    moved = column.clone()
    moved[:, 0] += 1
    return moved
