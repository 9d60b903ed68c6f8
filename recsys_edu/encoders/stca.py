"""Stacked target cross-attention: the candidate reads the events, layer after layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys_edu.attention.softmax import CrossAttention, attend
from recsys_edu.encoders.append import KeyValueCache
from recsys_edu.encoders.base import Events, HistoryEncoder, readable


class SwiGLU(nn.Module):
    """W_3 (silu(W_1 x) * W_2 x), [..., in] -> [..., out], of width 2 out between.

    Source: Shazeer 2020 (arXiv 2002.05202).
    """

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.gate_value = nn.Linear(d_in, 4 * d_out)
        self.out = nn.Linear(2 * d_out, d_out)

    def forward(self, x: Tensor) -> Tensor:
        """Of each vector by itself."""
        gate, value = self.gate_value(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class STCA(HistoryEncoder[Tensor, KeyValueCache]):
    """Stacked target cross-attention: no event reads another, in any layer.

    ::

        request clock    k_i, v_i = W_i norm(SwiGLU_i(norm(H)))     O(l N d^2)
        candidate clock  q_1 = C
                         o_i = W_o attend(W_q norm(q_i), k_i, v_i)
                         q_{i+1} = SwiGLU(W [C; o_1 .. o_i])
                         h = norm(q_{l+1})                      O(l N d + l^2 d^2)

    It lies between DIN, which reads the events once, and append with cross-attention,
    whose events read each other first. There is nothing of N^2. Since an event's keys
    know that event alone, a prefix of the history has the prefix of its keys, and a
    history is extended by writing the new keys behind the old ones.

    A learned start token stands before the events, so that no softmax is over nothing.

    Source: STCA (arXiv 2511.06077), as we read it. Our choices where it is open: H is
    normed before SwiGLU_i, which is quadratic and would lose small vectors in the eps
    of the norm behind it; queries are normed; SwiGLU is 2 d wide; W is a layer of its
    own, that brings i + 1 vectors back to d; there is no residual, since the candidate
    stands in every [C; o_1 ..]; and h is what would be the next layer's query.

    Example:
        >>> encoder = STCA(8).eval()
        >>> events = Events(torch.rand(1, 5, 8), torch.ones(1, 5, dtype=torch.bool))
        >>> code = encoder.encode_history(events, torch.rand(1, 2, 8))  # request clock
        >>> code.k.shape  # [B, layers, heads, 1 + N, dh]
        torch.Size([1, 2, 2, 6, 4])
        >>> encoder.fuse(torch.rand(1, 3, 8), code).shape  # candidate clock
        torch.Size([1, 3, 8])
    """

    def __init__(
        self, d: int, *, layers: int = 2, heads: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(d) * d**-0.5)
        self.norm_event = nn.LayerNorm(d)
        self.event = nn.ModuleList(SwiGLU(d, d) for _ in range(layers))
        self.attention = nn.ModuleList(CrossAttention(d, heads) for _ in range(layers))
        self.join = nn.ModuleList(nn.Linear((2 + i) * d, d) for i in range(layers))
        self.query = nn.ModuleList(SwiGLU(d, d) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(d)

    def encode_items(self, items: Tensor) -> Tensor:
        """Item clock: nothing to do, [..., d] -> [..., d]."""
        return items

    def encode_history(self, events: Events, context: Tensor) -> KeyValueCache:
        """Request clock: keys and values of 1 + N events in each layer."""
        start = self.start.expand(len(events.mask), 1, -1)
        k, v = self._keys_values(torch.cat([start, events.vectors], dim=1))
        mask = F.pad(readable(events.mask, events.visible), (1, 0), value=True)
        return KeyValueCache(k, v, mask)

    def extend(
        self, code: KeyValueCache, new: Events, context: Tensor
    ) -> KeyValueCache:
        """Request clock: K new events, O(l K d^2), whatever came before."""
        k, v = self._keys_values(new.vectors)
        return KeyValueCache(
            torch.cat([code.k, k], dim=-2),
            torch.cat([code.v, v], dim=-2),
            torch.cat([code.mask, new.mask.unsqueeze(1)], dim=-1),
        )

    def _keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Events [B, T, d] -> two of [B, layers, heads, T, dh]."""
        x = self.norm_event(self.dropout(x))
        layers = zip(self.event, self.attention, strict=True)
        kept = (attention.keys_values(event(x)) for event, attention in layers)
        k, v = (torch.stack(part, dim=1) for part in zip(*kept, strict=True))
        return k, v

    def fuse(self, items: Tensor, history: KeyValueCache) -> Tensor:
        """Candidate clock: M queries, each reading the history once a layer.

        PyTorch's fused attention is its kernel, on a GPU as on a CPU.
        """
        items = items.expand(len(history.mask), *items.shape[-2:])
        allowed = history.mask.unsqueeze(1)  # [B, 1, 1 or M, 1 + N]
        query, known = items, [items]
        parts = zip(self.attention, self.join, self.query, strict=True)
        for layer, (attention, join, ffn) in enumerate(parts):
            k, v = history.k[:, layer], history.v[:, layer]
            read = attend(attention.queries(query), k, v, allowed)
            known.append(self.dropout(attention.update(read)))
            query = ffn(join(torch.cat(known, dim=-1)))
        return self.norm(query)
