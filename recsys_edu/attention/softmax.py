"""Softmax attention, and a Transformer block whose keys and values can be kept."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys_edu.attention.heads import join_heads, split_heads, split_pair


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(dh), over the keys that ``mask`` allows) v.

    PyTorch's fused kernels do the work. A query that may read no key has no answer:
    keep one key that all may read, as a start token is.

    Args:
        q: [B, heads, Q, dh].
        k, v: [B, heads, K, dh].
        mask: broadcasts to [B, heads, Q, K], True where q may read k; None for all.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def attend_and_itself(
    q: Tensor, k: Tensor, v: Tensor, k_own: Tensor, v_own: Tensor, mask: Tensor | None
) -> Tensor:
    """As :func:`attend`, where each query has one more key and value of its own.

    The shared keys stay shared: no [B, Q, K + 1, dh] copy of them is made.

    Args:
        q, k_own, v_own: [B, heads, Q, dh].
        k, v: [B, heads, K, dh].
        mask: over the shared keys, as in :func:`attend`; a query always reads its own.
    """
    scale = q.shape[-1] ** -0.5
    shared = q @ k.transpose(-1, -2) * scale  # [B, heads, Q, K]
    if mask is not None:
        shared = shared.masked_fill(~mask, float("-inf"))
    own = (q * k_own).sum(-1, keepdim=True) * scale  # [B, heads, Q, 1]
    weights = torch.cat([shared, own], dim=-1).softmax(dim=-1)
    return weights[..., :-1] @ v + weights[..., -1:] * v_own


def attend_lse(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As :func:`attend`, and the log of each row's sum of exponentials.

    Returns:
        What was read [B, heads, Q, dh], and lse [B, heads, Q]. The two are all that is
        needed to read more keys later: see :func:`merge`.
    """
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # [B, heads, Q, K]
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ v, scores.logsumexp(dim=-1)


def merge(
    read: Tensor, lse: Tensor, more: Tensor, more_lse: Tensor
) -> tuple[Tensor, Tensor]:
    """Softmax attention over the keys of two parts, from what each part gave.

    ::

        lse  = log(e^lse_1 + e^lse_2)
        read = e^(lse_1 - lse) read_1 + e^(lse_2 - lse) read_2

    Exact in real arithmetic, and no exponent is positive. Source: the running softmax
    of Milakov and Gimelshein 2018 (arXiv 1805.02867).

    Args:
        read, more: [B, heads, Q, dh], by :func:`attend_lse` over other keys each.
        lse, more_lse: [B, heads, Q].
    """
    total = torch.logaddexp(lse, more_lse)
    first, second = ((part - total).exp().unsqueeze(-1) for part in (lse, more_lse))
    return first * read + second * more, total


class CrossAttention(nn.Module):
    """Multi-head attention of tokens x over tokens y: W_o attend(W_q norm(x), norm(y)).

    No residual and no feed-forward part. Keys and values come in from outside, so that
    they, or what was read of them, can be kept. W_q and W_k start orthogonal: scores
    then start with a variance near 1, and queries that differ read different events
    from the first step on.
    """

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_query = nn.LayerNorm(d)
        self.norm_key = nn.LayerNorm(d)
        self.query = nn.Linear(d, d)
        self.key_value = nn.Linear(d, 2 * d)
        self.out = nn.Linear(d, d)
        nn.init.orthogonal_(self.query.weight)
        nn.init.orthogonal_(self.key_value.weight.data[:d])

    def queries(self, x: Tensor) -> Tensor:
        """Tokens [B, T, d] -> [B, heads, T, d / heads]."""
        return split_heads(self.query(self.norm_query(x)), self.heads)

    def keys_values(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, T, d] -> keys and values, each [B, heads, T, d / heads]."""
        return split_pair(self.key_value(self.norm_key(y)), self.heads)

    def update(self, read: Tensor) -> Tensor:
        """What was read [B, heads, T, d / heads] -> [B, T, d]."""
        return self.out(join_heads(read))


class TransformerBlock(nn.Module):
    """A pre-norm Transformer block whose keys and values can be kept and given back.

    ::

        x = x + W_o attention(W_q norm(x), k, v)
        x = x + ffn(norm(x)),   ffn(x) = W_2 gelu(W_1 x)

    :meth:`keys_values` is what M-FALCON keeps of a history, one pair a layer;
    ``forward`` is run for the history with its own, and for candidates with those.
    """

    def __init__(self, d: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(d)
        self.query = nn.Linear(d, d)
        self.key_value = nn.Linear(d, 2 * d)
        self.out = nn.Linear(d, d)
        self.norm_ffn = nn.LayerNorm(d)
        self.ffn = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        self.dropout = nn.Dropout(dropout)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, T, d] -> keys and values, each [B, heads, T, d / heads]."""
        return split_pair(self.key_value(self.norm_attention(x)), self.heads)

    def forward(
        self,
        x: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        *,
        reads_itself: bool = False,
    ) -> Tensor:
        """Tokens [B, T, d] that read keys and values [B, heads, K, dh] -> [B, T, d].

        Args:
            mask: broadcasts to [B, heads, T, K], True where a token may read a key.
            reads_itself: each token also has its own key, which is not among ``k``.
        """
        q = split_heads(self.query(self.norm_attention(x)), self.heads)
        if reads_itself:
            read = attend_and_itself(q, k, v, *self.keys_values(x), mask)
        else:
            read = attend(q, k, v, mask)
        x = x + self.dropout(self.out(join_heads(read)))
        return x + self.dropout(self.ffn(self.norm_ffn(x)))
