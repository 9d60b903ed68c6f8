"""Dataclasses of tensors: what batches, and the codes the clocks keep, are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Self

import torch
from torch import Tensor


class TensorTree:
    """Mixin for a dataclass whose fields are tensors, other such trees, or None."""

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """The same tree with ``fn`` applied to every tensor."""
        return type(self)(*(_map(getattr(self, f.name), fn) for f in fields(self)))

    def to(self, device: torch.device | str) -> Self:
        """The same tree on ``device``."""
        return self.map(lambda tensor: tensor.to(device))

    def __getitem__(self, index: Any) -> Self:
        """Indexes the leading dimensions of every tensor, as ``tensor[index]``."""
        return self.map(lambda tensor: tensor[index])


def _map(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    if value is None:
        return None
    return value.map(fn) if isinstance(value, TensorTree) else fn(value)
