"""Target attention: the candidate weighs the events, one by one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recsys_edu.encoders.base import Events, HistoryEncoder, readable
from recsys_edu.tree import TensorTree


@dataclass(frozen=True)
class HiddenItems(TensorTree):
    """Items, and what each brings to the attention MLP's hidden layer."""

    items: Tensor  # [..., d]
    hidden: Tensor  # [..., a]


@dataclass(frozen=True)
class HiddenEvents(TensorTree):
    """Events, and what each brings to the attention MLP's hidden layer."""

    events: Tensor  # [B, N, d]
    hidden: Tensor  # [B, N, a]
    mask: Tensor  # [B, 1 or M, N] bool


class DIN(HistoryEncoder[HiddenItems, HiddenEvents]):
    """Deep Interest Network (Zhou et al. 2018): an MLP weighs events for a candidate.

    ::

        h = 1/N sum_j a_j H_j,   a_j = w . relu(W [H_j; C; H_j * C; H_j - C] + b)

    The weights a_j do not sum to one, as in the paper, so that h can say how much
    interest there is. The 1/N is ours: lengths here run from none to hundreds, and the
    paper's bare sum would grow with them. W splits by what it reads: W_h H_j on the
    request clock, W_c C on the item clock, and W_p (H_j * C) is what is left to the
    candidate clock, O(N d a).
    """

    def __init__(self, d: int, *, hidden: int = 32) -> None:
        super().__init__()
        self.event = nn.Linear(d, hidden)
        self.candidate = nn.Linear(d, hidden, bias=False)
        self.product = nn.Linear(d, hidden, bias=False)
        self.weight = nn.Linear(hidden, 1)

    def encode_items(self, items: Tensor) -> HiddenItems:
        """Item clock: each item's share of the hidden layer."""
        return HiddenItems(items, self.candidate(items))

    def encode_history(self, events: Events, context: Tensor) -> HiddenEvents:
        """Request clock: each event's share of the hidden layer."""
        allowed = readable(events.mask, events.visible)
        return HiddenEvents(events.vectors, self.event(events.vectors), allowed)

    def fuse(self, items: HiddenItems, history: HiddenEvents) -> Tensor:
        """Candidate clock: N products, N weights and their sum, for each candidate."""
        batch = len(history.events)
        item, share = items.items, items.hidden
        item = item.expand(batch, *item.shape[-2:])  # [B, M, d]
        # W_p (H_j * C) = (W_p diag(C)) H_j: a matrix of its own for each candidate.
        matrix = item.unsqueeze(-2) * self.product.weight  # [B, M, a, d]
        product = torch.einsum("bmad,bnd->bmna", matrix, history.events)
        hidden = product + share.unsqueeze(-2) + history.hidden.unsqueeze(1)
        weight = self.weight(torch.relu(hidden)).squeeze(-1) * history.mask  # [B, M, N]
        return weight @ history.events / history.mask.sum(-1, keepdim=True).clamp(min=1)
