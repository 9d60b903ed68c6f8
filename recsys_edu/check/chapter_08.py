"""The checks of chapter 08's exercises: what they expect stands here, not there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from recsys_edu import check
from recsys_edu.attention.pointwise import PointwiseBlock, attend_pointwise
from recsys_edu.attention.xor import xor_attention

LOUD = 0.2
"""A standard deviation of scores above which a start is refused."""


def links_half(attempt: Callable) -> bool:
    """Exercise 1: ``(q [r, dh], k [N, dh], v [N, dh]) -> [r, dh]``, N may be 0."""
    draw = torch.Generator().manual_seed(0)
    cases = [
        tuple(torch.randn(size, dh, generator=draw) for size in (r, n, n))
        for r, n, dh in ((2, 5, 4), (3, 1, 4), (2, 7, 9), (2, 0, 4))
    ]

    def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t[None, None] for t in (q, k, v))
        return attend_pointwise(q, k, v, None, max(k.shape[2], 1))[0, 0]

    return check.function("Exercise 1", attempt, reference, cases)


def two_calls(attempt: Callable) -> bool:
    """Exercise 2: ``(block, links, events, mask) -> links, events`` of a block.

    Events under padding may be anything.
    """
    cases = []
    for seed, lengths in enumerate(((6, 4), (5, 5), (3, 0))):
        torch.manual_seed(seed)
        block = PointwiseBlock(8, 2, dropout=0.0).double()
        links, events = torch.randn(2, 3, 8).double(), torch.randn(2, 6, 8).double()
        mask = torch.arange(6) < torch.tensor(lengths)[:, None]
        cases.append((block, links, torch.where(mask[..., None], events, 9.0), mask))

    def read(how: Callable) -> Callable:
        def run(
            block: PointwiseBlock, links: Tensor, events: Tensor, mask: Tensor
        ) -> object:
            with torch.no_grad():
                both = how(block, links, events, mask)
            if not isinstance(both, tuple) or len(both) != 2:
                return both
            read, told = both
            right = read.shape == links.shape and told.shape == events.shape
            return (read, told[mask]) if right else both

        return run

    def reference(*case: object) -> tuple[Tensor, Tensor]:
        return xor_attention(*case, form="dense")

    return check.function("Exercise 2", read(attempt), read(reference), cases)


def loud_start(attempt: Callable) -> bool:
    """Exercise 3: ``(block, links, events) -> bool``, are its scores spread too far."""
    cases = []
    for seed, (d, heads) in enumerate(((32, 2), (64, 2), (32, 4))):
        torch.manual_seed(seed)
        links, events = torch.randn(1, 16, d), torch.randn(1, 50, d)
        plain = PointwiseBlock(d, heads, dropout=0.0)
        orthogonal, random = copy.deepcopy(plain), copy.deepcopy(plain)
        for layer in (orthogonal.gate_query, orthogonal.key_value):
            for part in layer.weight.data.split(d):
                nn.init.orthogonal_(part)
        for layer in (random.gate_query, random.key_value):
            nn.init.normal_(layer.weight, std=d**-0.5)
        # A key or a query alone shows nothing: one of them is large, the other small.
        uneven = copy.deepcopy(orthogonal)
        uneven.gate_query.weight.data /= 5
        cases += [(b, links, events) for b in (plain, orthogonal, random, uneven)]
    return check.function("Exercise 3", attempt, _loud, cases)


@torch.no_grad()
def _loud(block: PointwiseBlock, links: Tensor, events: Tensor) -> bool:
    (_, q), (k, _) = block.gate_queries(links), block.keys_values(events)
    return bool((q @ k.mT * q.shape[-1] ** -0.5).std() > LOUD)


def blocks_until_heard(attempt: Callable) -> bool:
    """Exercise 4: ``(n, w) -> blocks`` until the last event knows of the first."""

    def reference(n: int, w: int) -> int:
        at = torch.arange(n)
        window = ((at[:, None] >= at) & (at[:, None] - at < w)).double()
        knows, blocks = torch.eye(n).double(), 0
        while not knows[-1, 0]:
            knows, blocks = (window @ knows > 0).double(), blocks + 1
        return blocks

    cases = [(257, 33), (258, 33), (256, 33), (100, 2), (5, 9), (1, 4)]
    return check.function("Exercise 4", attempt, reference, cases)


def most_links(attempt: Callable) -> bool:
    """Exercise 5: ``(n, d, c) -> r``, the most links of a block as dear as HSTU's."""

    def reference(n: int, d: int, c: int) -> int:
        def xor(r: int) -> int:
            return 10 * (n + r) * d**2 + 8 * n * r * d

        hstu = 10 * n * d**2 + 2 * n * (n + c) * d
        return next(r for r, more in pairwise(range(n + c)) if xor(more) > hstu)

    cases = [(1024, 64, 128), (1024, 64, 1024), (256, 32, 128), (4096, 128, 512)]
    return check.function("Exercise 5", attempt, reference, cases)
