"""Mean pooling, a history as the average of its events; and a control beside it."""

from __future__ import annotations

from torch import Tensor, nn

from recsys_edu.encoders.base import Events, HistoryEncoder, readable
from recsys_edu.positions import BUCKETS, bucket


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


class LengthOnly(HistoryEncoder[Tensor, Tensor]):
    """A control: h is looked up by how many events there are, and by nothing else.

    ``h = table[n]`` up to ``exact``, and beyond it ``table[exact + bucket(n - exact)]``
    in buckets that double. No event is read. What such a model gains is no interest: it
    is what a log tells by itself of the k-th item that anybody takes.
    """

    def __init__(self, d: int, *, exact: int = 64) -> None:
        super().__init__()
        self.exact = exact
        self.table = nn.Embedding(exact + BUCKETS, d)
        nn.init.normal_(self.table.weight, std=d**-0.5 / 4)

    def encode_items(self, items: Tensor) -> Tensor:
        """Item clock: nothing to do, [..., d] -> [..., d]."""
        return items

    def encode_history(self, events: Events, context: Tensor) -> Tensor:
        """Request clock: [B, N, d] -> [B, 1, d], or [B, M, d] with ``visible``."""
        n = readable(events.mask, events.visible).sum(-1)
        beyond = self.exact + bucket((n - self.exact).clamp(min=0))
        return self.table(n.where(n < self.exact, beyond))

    def fuse(self, items: Tensor, history: Tensor) -> Tensor:
        """Candidate clock: the same vector for all M candidates."""
        return history.expand(-1, items.shape[-2], -1)
