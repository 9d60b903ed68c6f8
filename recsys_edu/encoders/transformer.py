"""What the Transformer encoders share: tokens, masks, and a pass through the blocks."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn

from recsys_edu.attention.softmax import TransformerBlock
from recsys_edu.encoders.base import Events, HistoryCode, HistoryEncoder


class Size(TypedDict, total=False):
    """Depth and regularisation of a :class:`TransformerEncoder`."""

    layers: int
    heads: int
    dropout: float


class TransformerEncoder(HistoryEncoder[Tensor, HistoryCode]):
    """A Transformer over the history, with a learned start token before it.

    The start token gives an empty history a key, so that no softmax is over nothing.
    With ``causal``, tokens read their past only: a prefix of the history then has the
    same keys, values and outputs as in the whole. Padding is at the end, so the past of
    a real token holds none, and no mask is needed; what padding reads is never read.
    """

    causal = False

    def __init__(
        self, d: int, *, layers: int = 2, heads: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(d) * d**-0.5)
        self.blocks = nn.ModuleList(
            TransformerBlock(d, heads, dropout) for _ in range(layers)
        )
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(d)

    def encode_items(self, items: Tensor) -> Tensor:
        """Item clock: nothing to do, [..., d] -> [..., d]."""
        return items

    def begin(self, events: Events) -> Events:
        """Puts the start token before the events: one more that everybody may read.

        Raises:
            ValueError: ``events.visible`` is given and events read later ones.
        """
        visible = events.visible
        if visible is not None:
            if not self.causal:
                raise ValueError(
                    f"in {type(self).__name__} events read later ones, which a "
                    "candidate may not see: train it one impression a row"
                )
            visible = visible + 1
        batch = len(events.mask)
        start = self.start.expand(batch, 1, -1)
        tokens = self.dropout(torch.cat([start, events.vectors], dim=1))
        real = torch.cat([events.mask.new_ones(batch, 1), events.mask], dim=1)
        return Events(tokens, real, visible)

    def allowed(self, mask: Tensor) -> Tensor | None:
        """Which keys history tokens may read: [B, T] real ones -> [B, 1, 1, T] bool.

        None for a causal history: padding is at the end, where no real token reads, so
        that ``causal`` says it all.
        """
        return None if self.causal else mask[:, None, None, :]

    def run(self, x: Tensor, allowed: Tensor | None, *, causal: bool = False) -> Tensor:
        """Tokens [B, T, d], reading each other where allowed, through all blocks."""
        for block in self.blocks:
            x = block(x, *block.keys_values(x), allowed, causal=causal)
        return self.norm(x)

    def read_out(self, x: Tensor, allowed: Tensor, token: int) -> Tensor:
        """One token of :meth:`run`, [B, d]: the last block runs for it alone.

        Args:
            allowed: [B, 1, 1, T], the same for all tokens.
        """
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, *block.keys_values(x), allowed)
        k, v = last.keys_values(x)
        return self.norm(last(x[:, token].unsqueeze(1), k, v, allowed)).squeeze(1)
