"""Softmax attention, and a Transformer block whose keys and values can be kept."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys_edu.attention.heads import join_heads, split_heads, split_pair

# What attend() runs on a CPU, with its lse: not a public name, and so it may go.
_FUSED = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
) -> Tensor:
    """softmax(q k^T / sqrt(dh), over the keys that ``mask`` allows) v.

    PyTorch's fused kernels do the work. A query that may read no key has no answer:
    keep one key that all may read, as a start token is.

    Args:
        q: [B, heads, Q, dh].
        k, v: [B, heads, K, dh].
        mask: broadcasts to [B, heads, Q, K], True where q may read k; None for all.
        causal: query i reads keys 0 .. i, where Q = K. No mask is made for it, and
            blocks of keys that none of a block of queries reads are left out: nearly
            half of all pairs, where there are many blocks.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def attend_and_itself(
    q: Tensor, k: Tensor, v: Tensor, k_own: Tensor, v_own: Tensor, mask: Tensor | None
) -> Tensor:
    """As :func:`attend`, where each query has one more key and value of its own.

    The shared keys stay shared: no [B, Q, K + 1, dh] copy of them is made. A query's
    own key is a part of one key, whose lse is its score: :func:`merge` adds it.

    Args:
        q, k_own, v_own: [B, heads, Q, dh].
        k, v: [B, heads, K, dh].
        mask: over the shared keys, as in :func:`attend`; a query always reads its own.
    """
    own = (q * k_own).sum(-1) * q.shape[-1] ** -0.5  # [B, heads, Q]
    return merge(*attend_lse(q, k, v, mask), v_own, own)[0]


def attend_lse(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As :func:`attend`, and the log of each row's sum of exponentials.

    Where :func:`lse_is_kept`, a fused kernel does it and no score is written to memory.

    Returns:
        What was read [B, heads, Q, dh], and lse [B, heads, Q]. The two are all that is
        needed to read more keys later: see :func:`merge`.
    """
    if lse_is_kept(q, k, v):
        return attend_lse_fused(q, k, v, mask)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # [B, heads, Q, K]
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ v, scores.logsumexp(dim=-1)


def lse_is_kept(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether a fused kernel of PyTorch gives us its lse for these tensors.

    The one for CPUs does, but passes no gradient through it, and stops the process
    where there is no query or no key. As everywhere, ``sdpa_kernel`` may forbid it.
    """
    differentiated = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (q, k, v)
    )
    return (
        q.device.type == "cpu"
        and _FUSED is not None
        and _fused_allowed()
        and q.numel() > 0
        and k.numel() > 0
        and not differentiated
    )


def _fused_allowed() -> bool:
    """The switch that ``sdpa_kernel`` sets; a compiler cannot read it."""
    return torch.compiler.is_compiling() or torch.backends.cuda.flash_sdp_enabled()


def attend_lse_fused(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`attend_lse` by PyTorch's fused kernel for CPUs."""
    if mask is not None:  # this kernel adds its mask to the scores
        mask = q.new_zeros(mask.shape).masked_fill(~mask, float("-inf"))
    return _FUSED(q, k, v, attn_mask=mask)


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
    return (first * read + second * more).to(read.dtype), total


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

    In inference it is PyTorch's ``nn.TransformerEncoderLayer``, ``norm_first`` and with
    gelu. In training that one also drops attention weights and the hidden layer of its
    ffn; this one drops what is added to x and nothing else.
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
        causal: bool = False,
        reads_itself: bool = False,
    ) -> Tensor:
        """Tokens [B, T, d] that read keys and values [B, heads, K, dh] -> [B, T, d].

        Args:
            mask, causal: as in :func:`attend`.
            reads_itself: each token also has its own key, which is not among ``k``.
        """
        q = split_heads(self.query(self.norm_attention(x)), self.heads)
        if reads_itself:
            read = attend_and_itself(q, k, v, *self.keys_values(x), mask)
        else:
            read = attend(q, k, v, mask, causal=causal)
        x = x + self.dropout(self.out(join_heads(read)))
        return x + self.dropout(self.ffn(self.norm_ffn(x)))
