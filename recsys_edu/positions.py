"""When in a history an event happened: a vector that is added to the event's own.

Three schemes, and one question that decides what may be kept between requests: does a
new event change what was added to the older ones?
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from recsys_edu.batch import History
from recsys_edu.configured import Configured

BUCKETS = 26
"""Buckets of a distance: the last begins at 2^25 - 1, which is a year of seconds."""


def bucket(distance: Tensor) -> Tensor:
    """min(floor(log2(1 + distance)), 25) of integers; what is negative counts as 0.

    floor(log2(x)) is the exponent that a float32 of x has, in bits 23 and up, plus 127.
    It is read of x // 2, which at most 2^24 is exact, and which has one less.

    Returns:
        [...] int32.
    """
    x = distance.clamp(0, 2 ** (BUCKETS - 1) - 1).int().add_(1)
    half = x.bitwise_right_shift_(1).float()
    return half.view(torch.int32).bitwise_right_shift_(23).sub_(126).clamp_(min=0)


def newer(mask: Tensor) -> Tensor:
    """How many events of the same user come later, [..., N] bool -> [..., N] int64."""
    return mask.sum(-1, keepdim=True) - mask.long().cumsum(-1)


class Positions(Configured, nn.Module, ABC):
    """Event j of a history takes row p(j) of a table [rows, d]."""

    append_only: ClassVar[bool]
    """Whether old events keep their vectors when new ones arrive."""

    def __init__(self, rows: int, d: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, d)
        nn.init.normal_(self.table.weight, std=d**-0.5 / 4)

    @property
    def longest(self) -> float:
        """N of the longest history that there are rows for, padding included."""
        return self.table.num_embeddings

    @abstractmethod
    def row(self, history: History) -> Tensor:
        """p, the row of each event: [B, N] int64."""

    def forward(self, history: History) -> Tensor:
        """Request clock: B histories of N events -> [B, N, d].

        Raises:
            ValueError: the histories are longer than the table; padding counts, so
                that the answer is in their shape and no number is looked at.
        """
        if history.item.shape[1] > self.longest:
            raise ValueError(
                f"{type(self).__name__} has {self.table.num_embeddings} rows, too few "
                f"for a history of {history.item.shape[1]} events: keep fewer events"
            )
        return self.table(self.row(history))


class Absolute(Positions):
    """p(j) = j: the oldest event takes row 0."""

    append_only = True

    def row(self, history: History) -> Tensor:
        """[B, N] int64: how many events of the same user are older, 0 under padding."""
        return torch.where(history.mask, history.mask.long().cumsum(1) - 1, 0)


class Recency(Positions):
    """p(j) = N - 1 - j: the newest event takes row 0.

    One new event moves every older one down a row.
    """

    append_only = False

    def row(self, history: History) -> Tensor:
        """[B, N] int64: how many events of the same user are newer, 0 under padding."""
        return torch.where(history.mask, newer(history.mask), 0)


class TimeGap(Positions):
    """p(j) = 1 + floor(log2(1 + seconds since event j - 1)); the first takes row 0.

    The last of the 26 rows begins at half a year. A gap lies in the past, so a new
    event leaves it as it is.
    """

    append_only = True
    longest = math.inf

    def __init__(self, d: int) -> None:
        super().__init__(BUCKETS, d)

    def row(self, history: History) -> Tensor:
        """[B, N] int64 in 0 .. 25, 0 under padding."""
        after_first = 1 + bucket(history.timestamp.diff(dim=1)).long()
        after_first = after_first.clamp(max=BUCKETS - 1)
        row = torch.zeros_like(history.timestamp)
        row[:, 1:] = torch.where(history.mask[:, 1:], after_first, 0)
        return row
