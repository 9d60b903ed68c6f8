"""Concat fusion: the candidate is written beside every event."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor, nn

from recsys_edu.encoders.base import Events
from recsys_edu.encoders.transformer import Size, TransformerEncoder


class ConcatEncoder(TransformerEncoder[Events]):
    """Early fusion by concatenation: token j = W [H_j; C], then a Transformer.

    ::

        x_j = W_h H_j + W_c C + b       every token knows the candidate
        h   = the start token's output of a bidirectional Transformer over x

    Each candidate is a Transformer over 1 + N tokens, O(l N d^2 + l N^2 d) on the
    candidate clock; only W_h H_j can be kept. Source: Hertel et al. 2025.
    """

    def __init__(self, d: int, **size: Unpack[Size]) -> None:
        super().__init__(d, **size)
        self.event = nn.Linear(d, d)
        self.candidate = nn.Linear(d, d, bias=False)

    def encode_items(self, items: Tensor) -> Tensor:
        """Item clock: W_c C, [..., d] -> [..., d]."""
        return self.candidate(items)

    def encode_history(self, events: Events, context: Tensor) -> Events:
        """Request clock: W_h H_j + b of every event, and of the start token."""
        begun = self.begin(events)
        return Events(self.event(begun.vectors), begun.mask)

    def fuse(self, items: Tensor, history: Events) -> Tensor:
        """Candidate clock: the whole Transformer, once for each of M candidates."""
        batch, m = len(history.vectors), items.shape[-2]
        x = history.vectors.unsqueeze(1) + items.unsqueeze(-2)  # [B, M, 1 + N, d]
        allowed = self.allowed(history.mask.repeat_interleave(m, dim=0))
        return self.read_out(x.flatten(0, 1), allowed, 0).unflatten(0, (batch, m))
