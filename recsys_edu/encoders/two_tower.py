"""Two towers: the user side is finished before a candidate is known."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_edu.encoders.append import HistoryTransformer
from recsys_edu.encoders.base import HistoryEncoder


class TwoTower(HistoryEncoder):
    """Late fusion: a causal Transformer's last output is the user, candidates unread.

    The candidate meets it in the ranker's dot products only, O(d) on the candidate
    clock. The code is one vector, however long the history.
    """

    def __init__(
        self, d: int, *, layers: int = 2, heads: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.transformer = HistoryTransformer(
            d, layers=layers, heads=heads, causal=True, dropout=dropout
        )

    def encode_items(self, items: Tensor) -> Tensor:
        """Item clock: nothing to do, [..., d] -> [..., d]."""
        return items

    def encode_history(
        self, history: Tensor, mask: Tensor, context: Tensor, visible: Tensor | None
    ) -> Tensor:
        """Request clock: the token of the last event to be read, [B, 1 or M, d]."""
        x, tokens = self.transformer.begin(history, mask)
        for block in self.transformer.blocks:
            x = block(x, *block.keys_values(x), self.transformer.allowed(tokens))
        last = mask.sum(-1, keepdim=True) if visible is None else visible  # [B, 1 or M]
        row = torch.arange(len(x), device=x.device).unsqueeze(-1)
        return self.transformer.norm(x[row, last])

    def fuse(self, items: Tensor, history: Tensor) -> Tensor:
        """Candidate clock: the user, the same vector for all M candidates."""
        return history.expand(-1, items.shape[-2], -1)
