"""Concat fusion: the candidate is written beside every event."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from recsys_edu.encoders.base import Events
from recsys_edu.encoders.transformer import Size, TransformerEncoder


class ConcatEncoder(TransformerEncoder[Events]):
    """Early fusion by concatenation: token j = W [H_j; C], then a Transformer.

    ::

        x_j = W_h H_j + W_c C + b       every token knows the candidate
        h   = the start token's output of a bidirectional Transformer over x

    Each candidate is a Transformer over 1 + N tokens, O(l N d^2 + l N^2 d) on the
    candidate clock; only W_h H_j can be kept. Source: Hertel et al. 2025. Whether their
    tokens come back to width d, and what of the outputs is read, is not known to us:
    :class:`WideConcat` is the other end of the choice.
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


class WideConcat(TransformerEncoder[Events]):
    """Concat at full width: token j = [H_j; C] as it is, and all outputs are read.

    ::

        x_j = [H_j; C]              2 d wide
        h   = W_o mean(outputs)     over the start token and all events

    Nothing is lost on the way in, and the Transformer is four times the work of
    :class:`ConcatEncoder`'s, all of it on the candidate clock. The mean holds the start
    token too, so that it is never over nothing.
    """

    def __init__(self, d: int, **size: Unpack[Size]) -> None:
        super().__init__(2 * d, **size)
        self.start = nn.Parameter(torch.randn(d) * d**-0.5)  # of one event's width
        self.out = nn.Linear(2 * d, d)

    def encode_items(self, items: Tensor) -> Tensor:
        """Item clock: nothing to do, [..., d] -> [..., d]."""
        return items

    def encode_history(self, events: Events, context: Tensor) -> Events:
        """Request clock: start and events as they are."""
        return self.begin(events)

    def fuse(self, items: Tensor, history: Events) -> Tensor:
        """Candidate clock: the whole Transformer, once for each of M candidates."""
        batch, m = len(history.vectors), items.shape[-2]
        shape = batch, m, history.vectors.shape[1], -1  # [B, M, 1 + N, d] both
        event = history.vectors.unsqueeze(1).expand(shape)
        x = torch.cat([event, items.unsqueeze(-2).expand(shape)], dim=-1)
        mask = history.mask.repeat_interleave(m, dim=0)
        outputs = self.run(x.flatten(0, 1), self.allowed(mask))
        share = mask / mask.sum(-1, keepdim=True).to(x.dtype)
        h = self.out(share.unsqueeze(1) @ outputs).squeeze(1)
        return h.unflatten(0, (batch, m))
