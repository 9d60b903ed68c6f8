"""Append fusion: the candidate is one more token behind the history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from recsys_edu.attention import masks
from recsys_edu.attention.prefill import prefill
from recsys_edu.encoders.base import CannotExtend, Events, readable
from recsys_edu.encoders.single_pass import OneSequence
from recsys_edu.encoders.transformer import Size, TransformerEncoder
from recsys_edu.tree import TensorTree


@dataclass(frozen=True)
class KeyValueCache(TensorTree):
    """What M-FALCON keeps of a history: keys and values of every layer."""

    k: Tensor  # [B, layers, heads, 1 + N, dh]
    v: Tensor  # [B, layers, heads, 1 + N, dh]
    mask: Tensor  # [B, 1 or M, 1 + N] bool, which of them a candidate may read


class AppendEncoder(
    TransformerEncoder[KeyValueCache], OneSequence[Tensor, KeyValueCache]
):
    """Append whose history knows no candidate, so that M-FALCON applies.

    The history runs through the Transformer by itself, and every layer's keys and
    values are kept. A candidate is one token that reads them::

        request clock    H = block_i(H reads H)                   O(l N d^2 + l N^2 d)
        candidate clock  C = block_i(C reads H, maybe itself)     O(l d^2 + l N d)

    Sources: Hertel et al. 2025 (append with cross-attention: Q from [H; C], K and V
    from H); Zhai et al. 2024, section 3.4 (M-FALCON). Whether the paper's history is
    causal is not published; both are here.

    Args:
        causal: events read earlier events only; needed for amortized training and for
            extending a cache. False lets them read each other both ways.
        reads_itself: a candidate also reads its own key: with ``causal``, this is
            append with causal self-attention.
    """

    def __init__(
        self,
        d: int,
        *,
        causal: bool = True,
        reads_itself: bool = False,
        **size: Unpack[Size],
    ) -> None:
        super().__init__(d, **size)
        self.causal, self.reads_itself = causal, reads_itself

    def encode_history(self, events: Events, context: Tensor) -> KeyValueCache:
        """Request clock: the Transformer over the history, its keys and values kept."""
        begun = self.begin(events)
        k, v = self._keys_values(begun.vectors, self.allowed(begun.mask))
        return KeyValueCache(k, v, readable(begun.mask, begun.visible))

    def extend(
        self, code: KeyValueCache, new: Events, context: Tensor
    ) -> KeyValueCache:
        """Request clock: K new events through the layers, O(l K d^2 + l K N d)."""
        if not self.causal:
            raise CannotExtend(
                "in a bidirectional history old events read new ones: from the second "
                "layer on, every key and value kept is another. Encode all of it again"
            )
        mask = torch.cat([code.mask, new.mask.unsqueeze(1)], dim=-1)
        k_new, known = new.mask.shape[1], code.k.shape[3]
        # One event reads all there is; more of them, [K, N + K], not each other's past.
        allowed = (
            None if k_new == 1 else mask.new_ones(k_new, known + k_new).tril(known)
        )
        k, v = self._keys_values(self.dropout(new.vectors), allowed, (code.k, code.v))
        return KeyValueCache(k, v, mask)

    def _keys_values(
        self,
        x: Tensor,
        allowed: Tensor | None,
        past: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        causal = self.causal and past is None

        def run(layer: int, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.blocks[layer](x, k, v, allowed, causal=causal)

        return prefill(self.blocks, x, run, past)

    def fuse(self, items: Tensor, history: KeyValueCache) -> Tensor:
        """Candidate clock: M tokens through the layers, reading the kept keys.

        PyTorch's fused attention is its kernel, on a GPU as on a CPU.
        """
        x = self.dropout(items.expand(len(history.mask), *items.shape[-2:]))
        allowed = history.mask.unsqueeze(1)  # [B, 1, 1 or M, 1 + N]
        for layer, block in enumerate(self.blocks):
            k, v = history.k[:, layer], history.v[:, layer]
            x = block(x, k, v, allowed, reads_itself=self.reads_itself)
        return self.norm(x)

    def one_pass(self, items: Tensor, events: Events) -> Tensor:
        """Candidate clock: 1 + N + M tokens, O(l (N + M) d^2 + l (N + M)^2 d)."""
        begun = self.begin(events)
        batch, n = begun.mask.shape
        items = items.expand(batch, *items.shape[-2:])
        m = items.shape[1]
        rule = masks.append(n, m, causal=self.causal, reads_itself=self.reads_itself)
        keys = torch.cat([begun.mask, begun.mask.new_ones(batch, m)], dim=1)
        allowed = rule.dense(items.device) & keys[:, None, None, :]
        x = torch.cat([begun.vectors, self.dropout(items)], dim=1)
        return self.run(x, allowed)[:, n:]


class AppendSelfEncoder(TransformerEncoder[Events]):
    """Append with bidirectional self-attention: every token reads every token.

    The history reads the candidate, so nothing behind the embeddings is shared: each
    candidate is a Transformer over 1 + N + 1 tokens, O(l N d^2 + l N^2 d). This is BST
    (Chen et al. 2019) with its target item at the end.
    """

    def encode_history(self, events: Events, context: Tensor) -> Events:
        """Request clock: the tokens as they are."""
        return self.begin(events)

    def fuse(self, items: Tensor, history: Events) -> Tensor:
        """Candidate clock: the whole Transformer, once for each of M candidates."""
        batch, m = len(history.vectors), items.shape[-2]
        candidate = items.expand(batch, m, -1).flatten(0, 1).unsqueeze(1)  # [B M, 1, d]
        x = torch.cat([history.vectors.repeat_interleave(m, dim=0), candidate], dim=1)
        mask = torch.cat([history.mask, history.mask.new_ones(batch, 1)], dim=1)
        allowed = self.allowed(mask.repeat_interleave(m, dim=0))
        return self.read_out(x, allowed, -1).unflatten(0, (batch, m))
