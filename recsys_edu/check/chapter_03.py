"""The exercises of *Concat versus append*: what is expected, and wrong turns.

Each function takes the reader's attempt, shows a card and returns whether it is right.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from recsys_edu.attention.softmax import TransformerBlock
from recsys_edu.check import function, value


def window_rule(attempt: Callable[..., object]) -> bool:
    """Exercise 1: the rule of a causal window of w events, candidates included."""
    q, k = torch.arange(7)[:, None], torch.arange(7)[None]
    cases = [(q, k, n, w) for n, w in ((5, 2), (6, 3), (5, 1), (4, 9), (7, 2))]
    return function("Exercise 1", attempt, _window, cases)


def _window(q: Tensor, k: Tensor, n: int, w: int) -> Tensor:
    reader = torch.where(q >= n, n - 1, q)
    return (k < n) & (k <= reader) & (k > reader - w)


def sharing_pays(attempt: object, *, d: int, layers: int) -> bool:
    """Exercise 2: the least M with ten times the FLOPs under concat, at 16 events."""
    t, most = 17, 100_000
    prefill = (layers - 1) * (24 * t * d**2 + 4 * t**2 * d) + 4 * t * d**2
    whole = prefill + 20 * d**2 + 4 * t * d
    one = layers * (20 * d**2 + 4 * t * d)
    pays = (
        m
        for m in range(1, most)
        if 2 * t * d**2 + m * whole >= 10 * (prefill + m * one)
    )
    return value("Exercise 2", attempt, next(pays, "never"))


def nothing_to_read(attempt: Callable[..., object]) -> bool:
    """Exercise 3: attention [Q, K] that reads zeros where nothing may be read."""
    generator = torch.Generator().manual_seed(0)

    def case(queries: int, keys: int, allowed: list[list[int]]) -> tuple[Tensor, ...]:
        shapes = [(queries, 4), (keys, 4), (keys, 4)]
        q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
        return q, k, v, torch.tensor(allowed).bool().reshape(queries, keys)

    cases = [
        case(2, 3, [[1, 1, 0], [1, 1, 1]]),
        case(3, 3, [[1, 0, 1], [0, 0, 0], [0, 1, 0]]),
        case(1, 2, [[0, 0]]),
        case(2, 0, [[], []]),
    ]
    return function("Exercise 3", attempt, _or_nothing, cases)


def _or_nothing(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    scores = (q @ k.T * q.shape[-1] ** -0.5).masked_fill(~allowed, float("-inf"))
    some = allowed.any(-1, keepdim=True)
    return torch.where(some, scores.softmax(-1), 0) @ v


def middle_way(attempt: Callable[..., object]) -> bool:
    """Exercise 4: a last layer whose keys and values know the candidate."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        cases = []
        for n, m in ((4, 3), (1, 1), (6, 2)):
            block = TransformerBlock(8, 2, 0.0).eval()
            history, shares = torch.randn(1, n, 8), torch.randn(m, 8)
            cases.append((block, history, shares, torch.randn(1, m, 8)))
        return function("Exercise 4", attempt, _last_layer, cases)


def _last_layer(
    block: TransformerBlock, history: Tensor, shares: Tensor, tokens: Tensor
) -> Tensor:
    out = []
    for m, share in enumerate(shares):
        k, v = block.keys_values(history + share)
        out.append(block(tokens[:, m : m + 1], k, v, None))
    return torch.cat(out, dim=1)
