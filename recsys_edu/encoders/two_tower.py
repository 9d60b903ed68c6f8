"""Two towers: the user side is finished before a candidate is known."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_edu.encoders.base import Events, readable
from recsys_edu.encoders.transformer import TransformerEncoder


class TwoTower(TransformerEncoder[Tensor]):
    """Late fusion: a causal Transformer's last output is the user, candidates unread.

    The candidate meets it in the ranker's dot products only, O(d) on the candidate
    clock. The code is one vector, however long the history.
    """

    causal = True

    def encode_history(self, events: Events, context: Tensor) -> Tensor:
        """Request clock: the token of the last event to be read, [B, 1 or M, d]."""
        begun = self.begin(events)
        x = self.run(begun.vectors, None, causal=True)
        token = torch.arange(x.shape[1], device=x.device)
        last = torch.where(readable(begun.mask, begun.visible), token, 0).amax(-1)
        row = torch.arange(len(x), device=x.device).unsqueeze(-1)
        return x[row, last]

    def fuse(self, items: Tensor, history: Tensor) -> Tensor:
        """Candidate clock: the user, the same vector for all M candidates."""
        return history.expand(-1, items.shape[-2], -1)
