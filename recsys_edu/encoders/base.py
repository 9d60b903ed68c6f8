"""The interface every history encoder implements: one method per clock."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor, nn

from recsys_edu.configured import Configured
from recsys_edu.tree import TensorTree

Code = Tensor | TensorTree
"""What an encoder keeps; only the encoder that made a code reads it."""

ItemCode = TypeVar("ItemCode", bound=Code)  # of items
HistoryCode = TypeVar("HistoryCode", bound=Code)  # of a history


@dataclass(frozen=True)
class Events(TensorTree):
    """B histories as an encoder reads them: oldest first, padded at the end.

    So event j stands in column j, and what a causal encoder's event j may read is the
    columns up to its own. Nothing here checks it: the door rolls what comes otherwise.
    """

    vectors: Tensor  # [B, N, d]
    mask: Tensor  # [B, N] bool, True where there is an event; a row may be all False
    # [B, M] int64, how many leading events each candidate may read, for amortized
    # training; None if all candidates may read all events.
    visible: Tensor | None = None
    # In int64 seconds, for encoders that read time: when each event happened, [B, N],
    # and when the candidates are shown, [B, 1 or M].
    timestamp: Tensor | None = None
    now: Tensor | None = None


class CannotExtend(ValueError):
    """A code may not be carried over to a longer history; the message says why."""


class HistoryEncoder(Configured, nn.Module, ABC, Generic[ItemCode, HistoryCode]):
    """Fuses M candidates with a user's history of N events.

    The three methods are the three clocks. What a method may depend on is what its
    clock knows: an item code knows no user, a history code knows no candidate.
    """

    @abstractmethod
    def encode_items(self, items: Tensor) -> ItemCode:
        """Item clock: [..., d] item vectors -> whatever can be kept per item."""

    @abstractmethod
    def encode_history(self, events: Events, context: Tensor) -> HistoryCode:
        """Request clock: a history -> whatever can be kept per request.

        Args:
            events: B histories of N events.
            context: [B, S, d] the users' feature vectors.

        Raises:
            ValueError: ``events.visible`` is given and the encoder lets events read
                later ones, so that no part of its code is free of them.
        """

    @abstractmethod
    def fuse(self, items: ItemCode, history: HistoryCode) -> Tensor:
        """Candidate clock: codes of M candidates and of B histories -> [B, M, d]."""

    def extend(self, code: HistoryCode, new: Events, context: Tensor) -> HistoryCode:
        """Request clock: the code of [old events; new events], from the old one's code.

        It equals ``encode_history`` of them all, at the price of the new events. The
        given code is left as it is. This is what lets a code live between requests.

        Args:
            code: of unpadded histories, all of one length.
            new: K later events of each, unpadded.
            context: as in :meth:`encode_history`.

        Raises:
            CannotExtend: a new event changes what was kept of the old ones.
        """
        raise CannotExtend(
            f"{type(self).__name__} keeps nothing that a longer history could go on "
            "from: encode all of it again"
        )

    def at(self, code: HistoryCode, now: Tensor) -> HistoryCode:
        """Request clock: the code of the same history for candidates shown at ``now``.

        A code that holds no time of a request is the same at any; so it is here.

        Args:
            now: [B, 1 or M] int64 seconds, as in :class:`Events`.
        """
        return code

    def forward(self, events: Events, context: Tensor, candidates: Tensor) -> Tensor:
        """All three clocks at once: candidates [B, M, d] -> [B, M, d]."""
        code = self.encode_history(events, context)
        return self.fuse(self.encode_items(candidates), code)


def readable(mask: Tensor, visible: Tensor | None) -> Tensor:
    """Which events which candidate may read: the one place that decides visibility.

    Args:
        mask: [B, N] bool, True where there is an event.
        visible: [B, M] how many leading events each candidate may read, or None.

    Returns:
        [B, 1, N] bool, the same for all candidates; with ``visible`` [B, M, N].
    """
    if visible is None:
        return mask.unsqueeze(1)
    order = mask.cumsum(1).unsqueeze(1)  # [B, 1, N]: the order-th event of its user
    return mask.unsqueeze(1) & (order <= visible.unsqueeze(-1))
