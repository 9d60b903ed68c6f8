"""Mean pooling: a history is the average of its events."""

from __future__ import annotations

from torch import Tensor

from recsys_edu.encoders.base import Events, HistoryEncoder, readable


class MeanPooling(HistoryEncoder[Tensor, Tensor]):
    """h = mean of the events a candidate may read; zero for an empty history.

    The candidate meets h in the ranker's dot products only. The request clock pays
    O(N d); the code is one vector.
    """

    def encode_items(self, items: Tensor) -> Tensor:
        """Item clock: nothing to do, [..., d] -> [..., d]."""
        return items

    def encode_history(self, events: Events, context: Tensor) -> Tensor:
        """Request clock: [B, N, d] -> [B, 1, d], or [B, M, d] with ``visible``."""
        weight = readable(events.mask, events.visible).to(events.vectors.dtype)
        return weight @ events.vectors / weight.sum(-1, keepdim=True).clamp(min=1)

    def fuse(self, items: Tensor, history: Tensor) -> Tensor:
        """Candidate clock: the mean, the same vector for all M candidates."""
        return history.expand(-1, items.shape[-2], -1)
