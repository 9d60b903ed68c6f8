"""Concat fusion: the candidate is written beside every event."""

from __future__ import annotations

from torch import Tensor, nn

from recsys_edu.encoders.append import HistoryTransformer, Tokens
from recsys_edu.encoders.base import HistoryEncoder


class ConcatEncoder(HistoryEncoder):
    """Early fusion by concatenation: token j = W [H_j; C], then a Transformer.

    ::

        x_j = W_h H_j + W_c C + b       every token knows the candidate
        h   = the start token's output of a bidirectional Transformer over x

    Each candidate is a Transformer over 1 + N tokens, O(l N d^2 + l N^2 d) on the
    candidate clock; only W_h H_j can be kept. Source: Hertel et al. 2025.
    """

    def __init__(
        self, d: int, *, layers: int = 2, heads: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.event = nn.Linear(d, d)
        self.candidate = nn.Linear(d, d, bias=False)
        self.transformer = HistoryTransformer(
            d, layers=layers, heads=heads, causal=False, dropout=dropout
        )

    def encode_items(self, items: Tensor) -> Tensor:
        """Item clock: W_c C, [..., d] -> [..., d]."""
        return self.candidate(items)

    def encode_history(
        self, history: Tensor, mask: Tensor, context: Tensor, visible: Tensor | None
    ) -> Tokens:
        """Request clock: W_h H_j + b of every event, and of the start token."""
        if visible is not None:
            raise ValueError("every token knows the candidate: one impression a row")
        tokens, mask = self.transformer.begin(history, mask)
        return Tokens(self.event(tokens), mask)

    def fuse(self, items: Tensor, history: Tokens) -> Tensor:
        """Candidate clock: the whole Transformer, once for each of M candidates."""
        batch, m = len(history.tokens), items.shape[-2]
        x = history.tokens.unsqueeze(1) + items.unsqueeze(-2)  # [B, M, 1 + N, d]
        x = x.flatten(0, 1)
        allowed = self.transformer.allowed(history.mask.repeat_interleave(m, dim=0))
        for block in self.transformer.blocks:
            x = block(x, *block.keys_values(x), allowed)
        return self.transformer.norm(x[:, 0]).unflatten(0, (batch, m))
