"""The exercises of *HSTU*: what is expected, and cases in which slips come to light.

Each function takes the reader's attempt, shows a card and returns whether it is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys_edu.check import function
from recsys_edu.positions import BUCKETS, bucket

Piece = tuple[Tensor, Tensor]
"""Keys and values [k, dh]."""


def parts(attempt: Callable[..., object]) -> bool:
    """Exercise 1: what q [dh] reads of pieces (K, V) that come one at a time -> [dh].

    A piece's memory is used again once the next is asked for, so that nobody can keep
    them all and concatenate.
    """
    draw = torch.Generator().manual_seed(0)

    def case(dh: int, sizes: Sequence[int], n: int) -> tuple:
        pieces = [
            tuple(torch.randn(size, dh, generator=draw) for _ in "kv") for size in sizes
        ]
        return torch.randn(dh, generator=draw), pieces, n

    cases = [case(4, (3, 2), 5), case(9, (3, 1, 4), 20), case(2, (1, 0, 2), 7)]

    def streamed(q: Tensor, pieces: list[Piece], n: int) -> object:
        return attempt(q, _one_at_a_time(pieces), n)

    return function("Exercise 1", _same_blank(attempt, streamed), _parts, cases)


def _one_at_a_time(pieces: list[Piece]) -> Iterator[Piece]:
    for k, v in pieces:
        yield k, v
        k.fill_(9.0)
        v.fill_(9.0)


def _parts(q: Tensor, pieces: list[Piece], n: int) -> Tensor:
    k, v = (torch.cat(part) for part in zip(*pieces, strict=True))
    return F.silu(k @ q * len(q) ** -0.5) @ v / n


def normalisers(attempt: Callable[..., object]) -> bool:
    """Exercise 2: n of each event [B, N] and of each of M candidates [B, M].

    Events under padding may be given any number.
    """
    lengths = [[4, 2], [3], [5, 0, 1]]
    cases = [
        (torch.arange(width) < torch.tensor(some)[:, None], m)
        for some, width, m in zip(lengths, (4, 6, 5), (3, 1, 2), strict=True)
    ]

    def answered(mask: Tensor, m: int) -> object:
        got = attempt(mask, m)
        if got is None or got is ...:
            return got
        events, candidates = got
        return torch.where(mask, torch.as_tensor(events), 0), candidates

    return function("Exercise 2", _same_blank(attempt, answered), _normalisers, cases)


def _normalisers(mask: Tensor, m: int) -> tuple[Tensor, Tensor]:
    events = torch.where(mask, mask.cumsum(-1), 0)
    return events, (mask.sum(-1, keepdim=True) + 1).expand(-1, m)


def buckets(attempt: Callable[..., object]) -> bool:
    """Exercise 3: min(floor(log2(1 + seconds)), 25) of integers, exactly."""
    edges = 2 ** torch.arange(1, BUCKETS + 2)
    cases = [
        (torch.tensor([0, 1, 2, 3, 60, 3600, 86_400]),),
        (torch.stack([edges - 2, edges - 1, edges]),),
        (torch.tensor([-1, -86_400]),),
    ]
    return function("Exercise 3", attempt, bucket, cases)


def folded(attempt: Callable[..., object]) -> bool:
    """Exercise 4: (q, k, v, bias, mask) -> q, k, v that need neither bias nor mask.

    q is [h, M, dh]; k and v are [h, N, dh]; bias is [h, N]; mask is [N]. Of what comes
    back, ``silu(q k^T) v`` is taken, as it is.
    """
    draw = torch.Generator().manual_seed(0)

    def case(h: int, m: int, n: int, dh: int, allowed: list[int]) -> tuple:
        shapes = (h, m, dh), (h, n, dh), (h, n, dh), (h, n)
        tensors = [torch.randn(shape, generator=draw) for shape in shapes]
        return *tensors, torch.tensor(allowed).bool()

    cases = [case(2, 3, 4, 4, [1, 1, 0, 1]), case(1, 2, 5, 9, [0, 1, 1, 1, 0])]

    def read(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor) -> object:
        got = attempt(q, k, v, bias, mask)
        if got is None or got is ...:
            return got
        q, k, v = got
        return F.silu(q @ k.mT) @ v

    return function("Exercise 4", _same_blank(attempt, read), _masked, cases)


def _masked(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    scores = q @ k.mT * q.shape[-1] ** -0.5 + bias[:, None]
    return F.silu(scores).masked_fill(~mask, 0.0) @ v


def interleaved(attempt: Callable[..., object]) -> bool:
    """Exercise 5: (items, actions, mask, seconds) -> tokens, mask, seconds of 2 N.

    Tokens under padding may be anything.
    """
    draw = torch.Generator().manual_seed(0)

    def case(lengths: list[int], n: int, d: int) -> tuple:
        items, actions = (torch.randn(len(lengths), n, d, generator=draw) for _ in "ia")
        mask = torch.arange(n) < torch.tensor(lengths)[:, None]
        return items, actions, mask, 60 * torch.arange(n).expand(len(lengths), n)

    def answered(*inputs: Tensor) -> object:
        got = attempt(*inputs)
        if got is None or got is ...:
            return got
        tokens, mask, seconds = got
        mask = torch.as_tensor(mask)
        return _under(mask, tokens), mask, _under(mask, seconds)

    def reference(*inputs: Tensor) -> tuple[Tensor, ...]:
        tokens, mask, seconds = _interleaved(*inputs)
        return _under(mask, tokens), mask, _under(mask, seconds)

    cases = [case([3, 1], 3, 4), case([2, 0, 4], 4, 2)]
    return function("Exercise 5", _same_blank(attempt, answered), reference, cases)


def _under(mask: Tensor, values: Tensor) -> Tensor:
    """Values with zeros for padding; as they are, where their shape is not right."""
    if values.shape[:2] != mask.shape:
        return values
    return torch.where(mask.view(*mask.shape, *[1] * (values.ndim - 2)), values, 0)


def _interleaved(
    items: Tensor, actions: Tensor, mask: Tensor, seconds: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    tokens = torch.stack([items, actions], dim=2).flatten(1, 2)
    return tokens, mask.repeat_interleave(2, 1), seconds.repeat_interleave(2, 1)


def _same_blank(attempt: object, wrapped: Callable) -> object:
    """``wrapped``, or the attempt itself where there is nothing to wrap yet."""
    return attempt if attempt is None or attempt is ... else wrapped
