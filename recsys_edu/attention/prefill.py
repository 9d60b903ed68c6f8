"""The prefill: a history through all layers, the keys and values of each kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor


class KeepsKeysValues(Protocol):
    """A block that says what its tokens give to be read: the Transformer's, HSTU's."""

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, T, d] -> keys and values, each [B, heads, T, dh]."""


def prefill(
    blocks: Sequence[KeepsKeysValues],
    x: Tensor,
    run: Callable[[int, Tensor, Tensor, Tensor], Tensor],
    past: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Keys and values of every layer: what M-FALCON keeps of a history.

    The last block is not run: nobody reads its output, only its keys and values.

    Args:
        x: [B, T, d] tokens, or those behind the ones that ``past`` was made of.
        run: (layer, x, k, v) -> x, the block of a layer on tokens that read k and v.
        past: the keys and values of earlier tokens, each [B, layers, heads, N, dh].

    Returns:
        Two tensors [B, layers, heads, N + T, dh], of the past and of x.
    """
    kept = []
    for layer, block in enumerate(blocks):
        if layer:
            x = run(layer - 1, x, *kept[-1])
        k, v = block.keys_values(x)
        if past is not None:
            k = torch.cat([past[0][:, layer], k], dim=2)
            v = torch.cat([past[1][:, layer], v], dim=2)
        kept.append((k, v))
    k, v = (torch.stack(part, dim=1) for part in zip(*kept, strict=True))
    return k, v
