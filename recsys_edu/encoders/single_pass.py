"""One masked sequence [history; M candidates]: the form M-FALCON is held against."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from recsys_edu.encoders.base import Events, HistoryCode, HistoryEncoder, ItemCode


class OneSequence(HistoryEncoder[ItemCode, HistoryCode]):
    """An encoder whose events read no candidate, and whose candidates read no other.

    A mask can say both, so that history and candidates may be one sequence.
    """

    @abstractmethod
    def one_pass(self, items: ItemCode, events: Events) -> Tensor:
        """Candidate clock: all tokens through all layers -> [B, M, d].

        Equals ``fuse`` with ``encode_history`` of the same events, whose ``visible`` is
        None.
        """


class SinglePassEncoder(HistoryEncoder[ItemCode, Events]):
    """The model of a :class:`OneSequence`, with all its work on the candidate clock.

    The weights are those of ``encoder``; so are the scores.
    """

    def __init__(self, encoder: OneSequence[ItemCode, Any]) -> None:
        super().__init__()
        self.encoder = encoder

    def encode_items(self, items: Tensor) -> ItemCode:
        """Item clock: as ``encoder`` does."""
        return self.encoder.encode_items(items)

    def encode_history(self, events: Events, context: Tensor) -> Events:
        """Request clock: the events as they are."""
        if events.visible is not None:
            raise ValueError("one sequence serves one request: visible must be None")
        return events

    def fuse(self, items: ItemCode, history: Events) -> Tensor:
        """Candidate clock: one pass over the history and all candidates."""
        return self.encoder.one_pass(items, history)
