"""Concat fusion: the candidate is written beside every event."""

from __future__ import annotations

from typing import Literal, Unpack

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
    tokens come back to d, and what of their outputs is read, has not been published;
    so both may be chosen.

    Args:
        wide: x_j = [H_j; C] as it is, in a Transformer 2 d wide, four times the work,
            whose result is projected to d. Nothing of it can be kept but H_j.
        read: "start" reads the start token's output, and the last block runs for it
            alone; "mean" reads the mean over the start and all events, so that it is
            never over nothing.

    Raises:
        ValueError: there is no such ``read``.
    """

    def __init__(
        self,
        d: int,
        *,
        wide: bool = False,
        read: Literal["start", "mean"] = "start",
        **size: Unpack[Size],
    ) -> None:
        if read not in ("start", "mean"):
            raise ValueError(f"read is {read!r}; it must be start or mean")
        super().__init__(2 * d if wide else d, **size)
        self.wide, self.read = wide, read
        if wide:
            self.start = nn.Parameter(torch.randn(d) * d**-0.5)  # of one event's width
            self.out = nn.Linear(2 * d, d)
        else:
            self.event = nn.Linear(d, d)
            self.candidate = nn.Linear(d, d, bias=False)

    def encode_items(self, items: Tensor) -> Tensor:
        """Item clock: W_c C, [..., d] -> [..., d]; ``wide`` the items as they are."""
        return items if self.wide else self.candidate(items)

    def encode_history(self, events: Events, context: Tensor) -> Events:
        """Request clock: W_h H_j + b of every event, and of the start token.

        With ``wide`` start and events as they are.
        """
        begun = self.begin(events)
        return begun if self.wide else Events(self.event(begun.vectors), begun.mask)

    def fuse(self, items: Tensor, history: Events) -> Tensor:
        """Candidate clock: the whole Transformer, once for each of M candidates."""
        batch, m = len(history.vectors), items.shape[-2]
        x, item = history.vectors.unsqueeze(1), items.unsqueeze(-2)
        if self.wide:  # [B, M, 1 + N, 2 d]
            shape = batch, m, x.shape[2], -1
            x = torch.cat([x.expand(shape), item.expand(shape)], dim=-1)
        else:
            x = x + item  # [B, M, 1 + N, d]
        mask = history.mask.repeat_interleave(m, dim=0)
        h = self._read(x.flatten(0, 1), mask).unflatten(0, (batch, m))
        return self.out(h) if self.wide else h

    def _read(self, x: Tensor, mask: Tensor) -> Tensor:
        """Tokens [B M, T, width], and which are real -> [B M, width]."""
        allowed = self.allowed(mask)
        if self.read == "start":
            return self.read_out(x, allowed, 0)
        share = mask / mask.sum(-1, keepdim=True).to(x.dtype)
        return (share.unsqueeze(1) @ self.run(x, allowed)).squeeze(1)
