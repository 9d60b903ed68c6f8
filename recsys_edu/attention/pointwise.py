"""Pointwise attention: a weight for each pair by itself, no softmax over the row."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from recsys_edu.attention.heads import join_heads, split_heads, split_pair
from recsys_edu.attention.precision import autocast_off, in_float32


def attend_pointwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    n: Tensor | int,
    bias: Tensor | None = None,
) -> Tensor:
    """(silu(q k^T / sqrt(dh) + bias), 0 where the mask forbids) v / n.

    A weight depends on its own query and key and on nothing else in the row, so that a
    sum over keys may be taken in parts, and a query that may read no key reads zero.
    ``n`` must be a constant of the query: how many keys *it* may read, say, but never
    the length of the sequence it happens to stand in.

    A sum over 16,384 keys leaves float16 before n brings it back. So numbers of 16 bits
    are taken to float32 first, under autocast too, and what was read is rounded last.

    Args:
        q: [B, heads, Q, dh].
        k, v: [B, heads, K, dh].
        mask: broadcasts to [B, heads, Q, K], True where q may read k; None for all.
        n: broadcasts to [B, heads, Q, 1], the normaliser, at least 1.
        bias: broadcasts to [B, heads, Q, K], added to the scores.

    Source: Zhai et al. 2024 (arXiv 2402.17152), section 3.2.
    """
    dtype, (q, k, v) = q.dtype, in_float32(q, k, v)
    with autocast_off(q):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if bias is not None:
            scores += bias
        weights = F.silu(scores, inplace=not scores.requires_grad)
        if mask is not None:
            weights.masked_fill_(~mask, 0.0)
        return (weights @ v / n).to(dtype)


class PointwiseBlock(nn.Module):
    """An HSTU block whose keys and values can be kept and given back.

    ::

        [u, q] = silu(W_uq norm(x)),   [k, v] = silu(W_kv norm(y))
        x = x + W_o (norm(attend_pointwise(q, k, v)) * u)

    There is no feed-forward part: the gate u does its work. Tokens x read tokens y,
    which are the history for candidates, links for events, and events for links.

    Source: Zhai et al. 2024, equations 1 to 3. Three things differ from its authors'
    code for the paper: scores are divided by sqrt(dh), where it divides by nothing;
    norms have weights and eps = 1e-5, where it has none and 1e-6, which tells with the
    small sums of short histories; and dropout comes after W_o, where it comes before.
    Their later code (``STULayer``) takes silu of u alone, and W_o reads [u, read,
    norm(read) * u], three times as wide.
    """

    def __init__(self, d: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(d)
        self.gate_query = nn.Linear(d, 2 * d)
        self.key_value = nn.Linear(d, 2 * d)
        self.norm_read = nn.LayerNorm(d)
        self.out = nn.Linear(d, d)
        self.dropout = nn.Dropout(dropout)

    def keys_values(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, T, d] -> keys and values, each [B, heads, T, d / heads]."""
        return split_pair(F.silu(self.key_value(self.norm(y))), self.heads)

    def forward(
        self,
        x: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        n: Tensor | int,
        bias: Tensor | None = None,
        itself: Tensor | None = None,
        attend: Callable[..., Tensor] = attend_pointwise,
    ) -> Tensor:
        """Tokens [B, T, d] that read keys and values [B, heads, K, dh] -> [B, T, d].

        Args:
            mask, n, bias: as in :func:`attend_pointwise`.
            itself: the bias, broadcasting to [B, heads, T, 1], under which each token
                also reads its own key, which is not among ``k``; None if it does not.
            attend: :func:`attend_pointwise`, or another form of it.
        """
        u, q = self.gate_queries(x)
        read = attend(q, k, v, mask, n, bias)
        if itself is not None:  # one more part of the sum: no copy of the shared keys
            k, v = self.keys_values(x)
            scores = (q * k).sum(-1, keepdim=True) * q.shape[-1] ** -0.5
            read = read + F.silu(scores + itself) * v / n
        return self.update(x, u, read)

    def gate_queries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, T, d] -> gate u [B, T, d] and queries [B, heads, T, d / heads]."""
        u, q = F.silu(self.gate_query(self.norm(x))).chunk(2, dim=-1)
        return u, split_heads(q, self.heads)

    def update(self, x: Tensor, u: Tensor, read: Tensor) -> Tensor:
        """Tokens and gate [B, T, d], and what was read [B, heads, T, dh] -> [B, T, d].

        ``forward`` is this on what :func:`attend_pointwise` reads; a sum over keys that
        was kept and grown is another way to come by it.
        """
        read = self.norm_read(join_heads(read))
        return x + self.dropout(self.out(read * u))
