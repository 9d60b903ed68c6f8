"""Amortized training: candidates that see as much share what is made of a prefix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

from torch import Tensor

from recsys_edu.attention.prefixes import rows, runs
from recsys_edu.encoders.base import Events, HistoryCode

EncodeHistory = Callable[[Any, Events, Tensor], HistoryCode]


def once_a_prefix(encode_history: EncodeHistory) -> EncodeHistory:
    """Lets candidates side by side that see as much, as one request's do, share work.

    For an ``encode_history`` whose code with ``visible`` has a set for each candidate,
    [B, M, ...] in all its tensors, as long as each set depends on its own prefix alone.
    It is then asked for a set for each run of equal ``visible``, and a copy of it is
    each candidate's: where K candidates are shown at a moment, the work of M / K sets.

    Example:
        >>> from recsys_edu.encoders.pooling import MeanPooling
        >>> class Shared(MeanPooling):
        ...     @once_a_prefix
        ...     def encode_history(self, events, context):
        ...         print("of", events.visible.tolist())
        ...         return super().encode_history(events, context)
        >>> import torch
        >>> vectors, mask = torch.rand(1, 5, 8), torch.ones(1, 5, dtype=torch.bool)
        >>> events = Events(vectors, mask, visible=torch.tensor([[2, 2, 2, 5, 5]]))
        >>> Shared().encode_history(events, None).shape
        of [[2, 5]]
        torch.Size([1, 5, 8])
    """

    @wraps(encode_history)
    def shared(self: Any, events: Events, context: Tensor) -> HistoryCode:
        found = None if events.visible is None else runs(events.visible)
        if found is None:
            return encode_history(self, events, context)
        visible, run = found
        code = encode_history(self, replace(events, visible=visible), context)
        if isinstance(code, Tensor):
            return rows(code, run)
        return code.map(lambda sets: rows(sets, run))

    return shared
