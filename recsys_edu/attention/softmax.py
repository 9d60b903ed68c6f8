"""Softmax attention, and a Transformer block whose keys and values can be kept."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        k, v = self.key_value(self.norm_attention(x)).chunk(2, dim=-1)
        return self._split_heads(k), self._split_heads(v)

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
        q = self._split_heads(self.query(self.norm_attention(x)))
        if reads_itself:
            read = attend_and_itself(q, k, v, *self.keys_values(x), mask)
        else:
            read = attend(q, k, v, mask)
        x = x + self.dropout(self.out(read.transpose(1, 2).flatten(-2)))
        return x + self.dropout(self.ffn(self.norm_ffn(x)))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
