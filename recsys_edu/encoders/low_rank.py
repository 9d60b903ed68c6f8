"""The baselines LIME is compared with at equal r: r rows of a history, by other means.

A candidate reads r rows by softmax attention, O(r d + d^2) on the candidate clock. The
two differ in what a row is: one of the last r events, or a mixture of all events that
was learned by position. An event more stands before them all, the learned start, so
that no softmax is over nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Required, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys_edu.attention.softmax import CrossAttention, attend
from recsys_edu.encoders.base import Events, HistoryEncoder, readable
from recsys_edu.encoders.shared import once_a_prefix
from recsys_edu.positions import newer
from recsys_edu.tree import TensorTree


@dataclass(frozen=True)
class Rows(TensorTree):
    """Keys and values of the R rows kept of a history, in S sets of their own."""

    k: Tensor  # [B, S, heads, R, dh], S = 1 or M
    v: Tensor  # [B, S, heads, R, dh]
    mask: Tensor | None  # [B, 1 or M, R] bool, which a candidate may read; None for all


class Size(TypedDict, total=False):
    """Size and regularisation of a :class:`RowsEncoder`."""

    r: Required[int]
    heads: int
    dropout: float


class RowsEncoder(HistoryEncoder[Tensor, Rows]):
    """What the baselines share: a start event, and candidates that read rows.

    ::

        h = W_o attend(W_q norm(C), W_k norm(rows), W_v norm(rows))

    Args:
        d: width of every vector.
        r: rows kept of a history.
    """

    def __init__(self, d: int, *, r: int, heads: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.r = r
        self.start = nn.Parameter(torch.randn(d) * d**-0.5)
        self.attention = CrossAttention(d, heads)
        self.dropout = nn.Dropout(dropout)

    def encode_items(self, items: Tensor) -> Tensor:
        """Item clock: nothing to do, [..., d] -> [..., d]."""
        return items

    def fuse(self, items: Tensor, history: Rows) -> Tensor:
        """Candidate clock: one attention over R rows, of all or of the candidate's."""
        batch, sets = history.k.shape[:2]
        items = items.expand(batch, *items.shape[-2:])
        x = items.reshape(batch * sets, items.shape[1] // sets, items.shape[2])
        allowed = None if history.mask is None else history.mask.unsqueeze(1)
        k, v = history.k.flatten(0, 1), history.v.flatten(0, 1)
        read = attend(self.attention.queries(x), k, v, allowed)
        return self.attention.update(read).view(items.shape)


class TruncatedMHA(RowsEncoder):
    """The last r events and no others; a candidate attends to them.

    What is left out is lost. With ``visible`` each candidate has last events of its
    own, so all keys are kept and masked.
    """

    def encode_history(self, events: Events, context: Tensor) -> Rows:
        """Request clock: keys and values of start and last r events, O(r d^2)."""
        vectors, mask = events.vectors, readable(events.mask, events.visible)
        if events.visible is None:
            # n events stand in the first n columns: the last r of them from n - r on.
            n, rows = mask.sum(-1), min(self.r, mask.shape[-1])
            column = (n - self.r).clamp(min=0) + torch.arange(rows, device=n.device)
            row = torch.arange(len(column), device=n.device).unsqueeze(-1)
            vectors, mask = vectors[row, column], (column < n).unsqueeze(1)
        else:
            mask = mask & (newer(mask) < self.r)  # [B, M, N]
        start = self.start.expand(len(vectors), 1, -1)
        k, v = self._keys_values(torch.cat([start, vectors], dim=1))
        return Rows(k, v, F.pad(mask, (1, 0), value=True))

    def extend(self, code: Rows, new: Events, context: Tensor) -> Rows:
        """Request clock: new events in, the oldest out; K d^2, and r d moved."""
        k, v = self._keys_values(new.vectors)
        mask = torch.cat([code.mask, new.mask.unsqueeze(1)], dim=-1)
        k, v = (torch.cat(pair, dim=-2) for pair in ((code.k, k), (code.v, v)))
        first = max(mask.shape[-1] - self.r, 1)
        keep = [0, *range(first, mask.shape[-1])]  # the start stays
        return Rows(k[..., keep, :], v[..., keep, :], mask[..., keep])

    def _keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.attention.keys_values(self.dropout(x))
        return k.unsqueeze(1), v.unsqueeze(1)


class LREA(RowsEncoder):
    """r learned mixtures of all events, weighted by how recent each is.

    ::

        rows = A^T [start; E],   A_ji = softmax over j (a_i[p_j])      [r, d]

    where p_j counts back from the newest event, and the oldest, from ``positions`` on,
    share a weight. The weights know where an event stands and not what it is. A new
    event moves all others, so nothing kept can grow; with ``visible`` each candidate
    has rows of its own, O(r N d).

    Linformer (Wang et al. 2020, arXiv 2006.04768) projects keys and values of a fixed
    length by a learned matrix. That ours counts from the end and is a softmax over the
    events there are, so as to fit any length, is our choice.

    Args:
        positions: rows of the table a; how many last events have weights of their own.
    """

    def __init__(self, d: int, *, positions: int = 256, **size: Unpack[Size]) -> None:
        super().__init__(d, **size)
        self.mixture = nn.Parameter(
            torch.randn(1 + positions, self.r)
        )  # the start's first

    @once_a_prefix
    def encode_history(self, events: Events, context: Tensor) -> Rows:
        """Request clock: r mixtures of 1 + N events, O(r N d + r d^2)."""
        mask = readable(events.mask, events.visible)  # [B, 1 or M, N]
        position = F.pad(
            (1 + newer(mask)).clamp(max=len(self.mixture) - 1), (1, 0), value=0
        )
        scores = self.mixture[position].masked_fill(
            ~F.pad(mask, (1, 0), value=True).unsqueeze(-1), float("-inf")
        )
        start = self.start.expand(len(mask), 1, -1)
        tokens = self.dropout(torch.cat([start, events.vectors], dim=1))
        weights = scores.softmax(dim=-2).transpose(-1, -2)  # [B, 1 or M, r, 1 + N]
        rows = weights @ tokens.unsqueeze(1)
        k, v = self.attention.keys_values(rows.flatten(0, 1))
        sets = rows.shape[:2]
        return Rows(k.unflatten(0, sets), v.unflatten(0, sets), None)
