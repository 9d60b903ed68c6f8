"""What the kernels of :mod:`recsys_edu.attention.kernels` do and move."""

from __future__ import annotations

import torch

from recsys_edu.attention.kernels import candidates, xor
from recsys_edu.cost.clocks import Cost


def xor_attend_cost(
    batch: int,
    heads: int,
    n: int,
    r: int,
    dh: int,
    itemsize: int,
    *,
    backward: bool = False,
) -> Cost:
    """What the kernel behind ``xor_attend`` does and moves, forward or backward.

    ::

        FLOPs   forward B h 8 N r dh,   backward B h 20 N r dh
        bytes   B (h dh (a N w + b r w + 8 c S r) + N)

    with w = ``itemsize`` and S = ceil(N / SPAN) spans, each of whose c sums [r, dh] is
    written and read in float32.

    ========  ========================  =======================  ==================
    pass      a: per event              b: per link              c: sums of a span
    ========  ========================  =======================  ==================
    forward   4: q k v, what it read    4: q k v, what it read   1: what links read
    backward  7: q k v g, dq dk dv      7: q k v g, dq dk dv     3: dq dk dv
    ========  ========================  =======================  ==================

    Each byte counts once. What programs read again, the links, comes from the cache.
    """
    per_token, sums, flops = (7, 3, 20) if backward else (4, 1, 8)
    spans = -(-n // xor.SPAN)
    tokens = per_token * (n + r) * itemsize + 8 * sums * spans * r
    return Cost(batch * heads * flops * n * r * dh, batch * (heads * dh * tokens + n))


def pointwise_cost(
    batch: int, heads: int, m: int, n: int, dh: int, itemsize: int, *, bias: int = 0
) -> Cost:
    """What the Triton kernel of pointwise attention does and moves.

    ::

        FLOPs   B h 4 M N dh
        bytes   B (h dh (2 M w + 2 N w) + N)  +  w bias  +  [S > 1] 8 S B h M dh

    with w = ``itemsize``, ``bias`` how many numbers the bias has, and S =
    ceil(N / SPAN) spans: where there is more than one, each one's sums are written and
    read in float32. Each byte counts once; blocks of candidates read the keys again,
    from the cache.
    """
    spans = -(-n // candidates.SPAN)
    sums = 8 * spans * m if spans > 1 else 0
    tokens = heads * dh * (2 * (m + n) * itemsize + sums)
    return Cost(batch * heads * 4 * m * n * dh, batch * (tokens + n) + bias * itemsize)


def fuse_links_cost(
    batch: int,
    m: int,
    r: int,
    d: int,
    weight: torch.dtype,
    out: torch.dtype,
) -> Cost:
    """What the kernel behind ``fuse_links`` does and moves.

    ::

        FLOPs   B 2 M r d
        bytes   B (M (8 + r w + 4 [int8] + d o) + r d o)

    with w and o the bytes of a ``weight`` and of an ``out`` number. A row of an int8
    table brings its float32 scale. Each row counts as read from memory, also where a
    cache holds it since another candidate asked for the same item.
    """
    row = r * weight.itemsize + 4 * (weight == torch.int8)
    moved = m * (8 + row + d * out.itemsize) + r * d * out.itemsize
    return Cost(batch * 2 * m * r * d, batch * moved)
