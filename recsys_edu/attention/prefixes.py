"""Attention over many prefixes of the same keys: amortized training's scan.

r queries read N keys, and M readers ask what they would have read of the first n_m keys
alone. One attention a reader costs O(M r N d). But a prefix is whole chunks of C keys
and the part of one more, and what a chunk gives is computed once for all readers::

    chunk c      read_c, lse_c                                 C keys become one
    reader m     chunks 0 .. n_m // C - 1, and n_m % C keys    at most N / C + C keys

That is O(r N d) for the chunks and, with C = 2 sqrt(N), O(r sqrt(N) d) a reader. A sum
over a prefix is the difference of no two others, so that nothing cancels, and a softmax
takes its maximum over what its reader reads, so that no later key drowns an early one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys_edu.attention.precision import autocast_off, in_float32


def attend_prefixes(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """:func:`~recsys_edu.attention.softmax.attend` over prefixes of the keys.

    A chunk stands for its keys as one key with score lse_c and value read_c: that is
    what :func:`~recsys_edu.attention.softmax.merge` says of two parts.

    Args:
        q: [B, heads, r, dh].
        k, v: [B, heads, N, dh].
        seen: [B, M] int64 in 1 .. N, how many leading keys each reader reads.

    Returns:
        [B, heads, M r, dh].
    """
    dtype, (q, k, v) = q.dtype, in_float32(q, k, v)
    with autocast_off(q):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        chunks = _Chunks.of(seen, k.shape[2])
        scores, v = chunks.cut(scores.movedim(-1, 1)), chunks.cut(v.transpose(1, 2))
        # [B, K, heads, r, C] and [B, K, heads, C, dh]
        scores, v = scores.movedim(2, -1), v.transpose(2, 3)
        lse, read = scores.logsumexp(-1), scores.softmax(-1) @ v
        whole = lse.movedim(1, -1).unsqueeze(1).expand(-1, lse.shape[1], -1, -1, -1)
        # Of each chunk: what all chunks score as one key, and its own keys' scores.
        weights = chunks.started(torch.cat([whole, scores], dim=-1))
        read_by = torch.cat([chunks.is_whole, chunks.is_read], dim=-1)  # [B, M, K + C]
        hidden = scores.new_zeros(read_by.shape).masked_fill(~read_by, float("-inf"))
        weights += hidden[:, :, None, None]  # adding has no backward pass to pay for
        weights = weights.softmax(-1)  # [B, M, heads, r, K + C]
        whole, part = weights.split([lse.shape[1], chunks.size], dim=-1)
        # [B, heads, r, M, K] @ [B, heads, r, K, dh]
        before = whole.movedim(1, 3) @ read.movedim(1, 3)
        read = before.movedim(3, 1) + part @ chunks.started(v)  # [B, M, heads, r, dh]
    return read.transpose(1, 2).flatten(2, 3).to(dtype)


def sum_prefixes(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """:func:`~recsys_edu.attention.pointwise.attend_pointwise` over prefixes, n = 1.

    Args:
        As of :func:`attend_prefixes`, with ``seen`` in 0 .. N.

    Returns:
        [B, heads, M r, dh], in float32 at least.
    """
    q, k, v = in_float32(q, k, v)
    with autocast_off(q):
        weights = F.silu((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2))
    return add_prefixes(weights, v, seen)


def add_prefixes(weights: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """sum_j w_j v_j over prefixes, of weights that depend on no other event.

    Such a sum has no maximum: chunks are added up as they come.

    Args:
        weights: [B, heads, r, N].
        v: [B, heads, N, dh].
        seen: [B, M] int64 in 0 .. N, how many leading events each reader reads.

    Returns:
        [B, heads, M r, dh], in float32 at least.
    """
    weights, v = in_float32(weights, v)
    with autocast_off(v):
        chunks = _Chunks.of(seen, v.shape[2])
        weights, v = chunks.cut(weights.movedim(-1, 1)), chunks.cut(v.transpose(1, 2))
        weights, v = weights.movedim(2, -1), v.transpose(2, 3)
        whole = (weights @ v).cumsum(1)  # [B, K, heads, r, dh]
        whole = torch.cat([torch.zeros_like(whole[:, :1]), whole], dim=1)
        part = chunks.started(weights).masked_fill(
            ~chunks.is_read[:, :, None, None], 0.0
        )
        # [B, M, heads, r, dh]
        total = rows(whole, chunks.whole) + part @ chunks.started(v)
    return total.transpose(1, 2).flatten(2, 3)


def runs(seen: Tensor) -> tuple[Tensor, Tensor] | None:
    """Readers side by side who read as much: [B, M] as U values, and who has which.

    U is the number of runs in the row that has most. A GPU is waited for, to know it;
    a graph of a compiler, whose shapes no number decides, keeps all readers apart.

    Returns:
        Values [B, U], 0 after a row's last, and the run of each reader [B, M] int64;
        None where that is no fewer.

    Example:
        >>> runs(torch.tensor([[2, 2, 7, 7], [3, 3, 3, 3]]))
        (tensor([[2, 7],
                [3, 0]]), tensor([[0, 0, 1, 1],
                [0, 0, 0, 0]]))
    """
    if torch.compiler.is_compiling() or seen.numel() == 0:
        return None
    row = F.pad(seen[:, 1:] != seen[:, :-1], (1, 0)).cumsum(1)
    count = int(row.max()) + 1
    if count == seen.shape[1]:
        return None
    return seen.new_zeros(len(seen), count).scatter_(1, row, seen), row


@dataclass(frozen=True)
class _Chunks:
    """N keys in K chunks of C, and where in them the prefixes of M readers end."""

    size: int  # C
    whole: Tensor  # [B, M] int64 chunks that a reader reads to their end, 0 .. K
    is_whole: Tensor  # [B, M, K] bool, which
    is_read: Tensor  # [B, M, C] bool, what a reader reads of the chunk after those

    @classmethod
    def of(cls, seen: Tensor, n: int) -> _Chunks:
        size = max(2 * isqrt(n), 1)  # few keys a reader, and products not too small
        chunk = torch.arange(max(-(-n // size), 1), device=seen.device)
        key = torch.arange(size, device=seen.device)
        whole, part = seen // size, seen % size
        return cls(size, whole, chunk < whole[..., None], key < part[..., None])

    def cut(self, x: Tensor) -> Tensor:
        """[B, N, ...] -> [B, K, C, ...], zeros behind the last of N."""
        n, count = x.shape[1], self.is_whole.shape[-1]
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, count * self.size - n))
        return x.unflatten(1, (count, self.size))

    def started(self, x: Tensor) -> Tensor:
        """Of chunks [B, K, ...] the one that each reader has begun: [B, M, ...]."""
        return rows(x, self.whole.clamp(max=x.shape[1] - 1))


def rows(x: Tensor, row: Tensor) -> Tensor:
    """x[b, row[b, m]] of x [B, R, ...] -> [B, M, ...], with a cheap gradient.

    Each as one flat vector: the gradient of rows that lie in strides is summed by a
    scatter, ten times slower.
    """
    first = torch.arange(len(x), device=x.device).unsqueeze(-1) * x.shape[1]
    flat = x.unsqueeze(-1).flatten(0, 1).flatten(1)
    chosen = flat.index_select(0, (first + row).flatten())
    return chosen.view(*row.shape, *x.shape[2:])
