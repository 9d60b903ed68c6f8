"""Sums that do not overflow: in float32 at least, whatever the type of the model."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def in_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in float32; in float64 if that is what they are."""
    return tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors)


def autocast_off(like: Tensor) -> AbstractContextManager:
    """A stretch in which ``torch.autocast`` takes no product back to 16 bits."""
    kind = like.device.type  # "meta", where work is counted, has no autocast
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()  # entering the other takes as long as a small product
