"""Heads: a token's d numbers as several vectors that attend side by side."""

from __future__ import annotations

from torch import Tensor


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Tokens [B, T, d] -> [B, heads, T, d / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def split_pair(x: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Two projections side by side, [B, T, 2 d] -> two of [B, heads, T, d / heads]."""
    first, second = x.chunk(2, dim=-1)
    return split_heads(first, heads), split_heads(second, heads)


def join_heads(x: Tensor) -> Tensor:
    """What the heads read, [B, heads, T, dh] -> [B, T, heads dh]."""
    return x.transpose(1, 2).flatten(-2)
