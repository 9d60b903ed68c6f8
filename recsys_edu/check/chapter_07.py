"""The checks of chapter 07's exercises: what is right, and the cases that tell it.

Each takes the reader's attempt and returns whether it is right. Cases are chosen so
that the usual slips give another result: parts of very unlike sizes, scores past the
range of ``exp``, a single part, no part at all.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from recsys_edu.attention.softmax import merge
from recsys_edu.check import claim, function, value
from recsys_edu.cost import count
from recsys_edu.encoders.lime import PHI

__all__ = ["combined", "forget", "phi", "prefixes", "scores_without_keys"]

Attempt = Callable[..., object]


def combined(attempt: Attempt) -> bool:
    """What a link has read of P parts: reads [P, dh], lses [P] -> [dh]."""
    make = _random(0)
    cases = [
        (make(4, 8), 3 * make(4)),
        (make(1, 8), make(1)),
        (make(3, 8), torch.tensor([900.0, 901.0, 898.0]).double()),
        (make(3, 8), torch.tensor([-900.0, -900.5, -902.0]).double()),
    ]
    return function("Exercise 1", attempt, _merged, cases)


def _merged(reads: Tensor, lses: Tensor) -> Tensor:
    read, lse = reads[0], lses[0]
    for more, more_lse in zip(reads[1:], lses[1:], strict=True):
        read, lse = merge(read, lse, more, more_lse)
    return read


def prefixes(attempt: Attempt) -> bool:
    """What a link has read after each event: scores [N], V [N, dh] -> [N, dh].

    And that it is done in one pass: N = 4,096 events may not cost N^2.
    """
    make = _random(1)
    cases = [
        (2 * make(6), make(6, 4)),
        (make(1), make(1, 4)),
        (800 + make(5), make(5, 4)),
        (torch.arange(5, 0, -1).double(), make(5, 4)),
    ]
    if not function("Exercise 2", attempt, _each_prefix, cases):
        return False
    flops = count(attempt, make(4096), make(4096, 4)).flops
    return claim(
        "and in one pass",
        flops < 1_000_000,
        "a product of all pairs of events: what can be carried from prefix to prefix?",
    )


def _each_prefix(scores: Tensor, values: Tensor) -> Tensor:
    ends = range(1, len(scores) + 1)
    return torch.stack([scores[:n].softmax(0) @ values[:n] for n in ends])


def scores_without_keys(attempt: Attempt) -> bool:
    """A head's scores Q (E W^T)^T, [r, N], for less than half the FLOPs."""
    make = _random(2)
    cases = [
        (make(3, 4), make(4, 8), make(7, 8)),
        (make(16, 32), make(32, 64), make(512, 64)),
    ]
    if not function("Exercise 3", attempt, _with_keys, cases):
        return False
    mine, keys = (count(f, *cases[1]).flops for f in (attempt, _with_keys))
    return claim("and cheaper", 0 < mine < keys / 2, "which product first?")


def _with_keys(q: Tensor, w: Tensor, events: Tensor) -> Tensor:
    return q @ (events @ w.T).T


def phi(attempt: object) -> bool:
    """With one link: does phi give two items different vectors? Of each in PHI."""
    scores = torch.tensor([[-1.0], [0.5]])
    weights = [function_(scores) for function_ in PHI.values()]
    return value("Exercise 4", attempt, [bool(w[0] != w[1]) for w in weights])


def forget(attempt: Attempt) -> bool:
    """S [r, dh], its count n, and K events' weights A [r, K] and values V [K, dh].

    Asks for the sum and the count without these events.
    """
    make = _random(3)
    cases = []
    for events, old in ((5, 2), (6, 1), (4, 0), (4, 4)):
        weights, values = make(3, events).softmax(0), make(events, 4)
        known = weights @ values, events + 1
        cases.append((*known, weights[:, :old], values[:old]))
    return function("Exercise 5", attempt, _without, cases)


def _without(
    total: Tensor, n: int, weights: Tensor, values: Tensor
) -> tuple[Tensor, int]:
    return total - weights @ values, n - len(values)


def _random(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator).double()
