"""Heads: a token's d numbers as several vectors that attend side by side."""

from __future__ import annotations

from torch import Tensor


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Tokens [B, T, d] -> [B, heads, T, d / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """What the heads read, [B, heads, T, dh] -> [B, T, heads dh]."""
    return x.transpose(1, 2).flatten(-2)
