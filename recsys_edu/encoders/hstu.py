"""HSTU: pointwise attention with relative positions and times, behind the interface."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from recsys_edu.attention import masks
from recsys_edu.attention.kernels.candidates import attend_shared
from recsys_edu.attention.pointwise import PointwiseBlock
from recsys_edu.attention.prefill import prefill
from recsys_edu.encoders.base import Events, readable
from recsys_edu.encoders.single_pass import OneSequence
from recsys_edu.positions import BUCKETS, bucket
from recsys_edu.tree import TensorTree

ROWS = BUCKETS
"""Rows of a table of biases: one for each bucket of a distance."""


CHUNK = 128
"""Events that go through the blocks at a time: what they leave between two operations
then stays in a processor's cache."""


def scored_pairs(n: int) -> int:
    """Pairs of N events that the request clock scores: N^2 in one chunk of them.

    In many it is little more than half of that: a chunk reads up to its own end.
    """
    firsts = range(0, n, CHUNK)
    ends = [min(first + CHUNK, n) for first in firsts]
    return sum(end * (end - first) for first, end in zip(firsts, ends, strict=True))


def relation(events: Tensor, seconds: Tensor) -> Tensor:
    """How far back a key lies of a query, as one row number for both scales.

    Args:
        events, seconds: integers that broadcast to [B, Q, K].

    Returns:
        [B, Q, K] int32: a row for :class:`RelativeBias`.
    """
    return bucket(events) * ROWS + bucket(seconds)


class RelativeBias(nn.Module):
    """b(q, k) = P[bucket(p_q - p_k)] + T[bucket(t_q - t_k)], for each head.

    p is a token's position, t the moment when it happened; P and T are [26, heads].
    Only differences are read, so that a pair of events keeps its bias when new events
    come: relative time may be kept between requests, where time counted from the
    request may not.

    Source: Zhai et al. 2024, section 3.2 (rab^{p,t}). Its authors' code has one table
    for all heads, a row for each distance in positions, 128 buckets of time by
    ln(dt) / .301, and takes for a query's time that of the *next* event. The newest
    event has no next one until the request comes, so that its bias could not be kept.
    Tables of each head's own and buckets by log2 are our choices.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(ROWS, heads))
        self.time = nn.Parameter(torch.zeros(ROWS, heads))

    def forward(self, rows: Tensor) -> Tensor:
        """Biases of pairs of tokens, [B, Q, K] of :func:`relation` -> [B, heads, Q, K].

        All 26 x 26 sums are made first, so that a pair costs one look-up. Each head
        looks up by itself: heads come out apart, and so do their gradients.
        """
        table = (self.position.unsqueeze(1) + self.time).flatten(0, 1).T  # [heads, 676]
        flat = rows.flatten()
        biases = torch.stack([head.index_select(0, flat) for head in table])
        return biases.unflatten(1, rows.shape).transpose(0, 1)

    @property
    def itself(self) -> Tensor:
        """The bias of a token with itself: [heads, 1, 1]."""
        return (self.position[0] + self.time[0])[:, None, None]


@dataclass(frozen=True)
class TimedCache(TensorTree):
    """What M-FALCON keeps of a history that HSTU read: (8 l d + 9) N + 8 bytes."""

    k: Tensor  # [B, layers, heads, N, dh]
    v: Tensor  # [B, layers, heads, N, dh]
    mask: Tensor  # [B, 1 or M, N] bool, which of them a candidate may read
    timestamp: Tensor  # [B, N] int64 seconds
    now: Tensor  # [B, 1 or M] int64 seconds, the one thing here that is the request's


class HSTU(OneSequence[Tensor, TimedCache]):
    """Hierarchical sequential transduction units over [history; candidate], causal.

    ::

        p    1, 2, .. N for events, N + 1 for every candidate
        x_q  block_i(x_q reads x_k of each earlier k and of q itself,
                     with normaliser n = p_q and bias b_i(q, k))

    and every layer's keys and values of the history are kept. A candidate is one token
    at the request's time that reads them and itself::

        request clock    H = block_i(H reads H)              O(l N d^2 + l N^2 d)
        candidate clock  C = block_i(C reads H and itself)   O(l d^2 + l N d)

    The sum over keys is divided by p_q, how many keys this query may read. The length
    of the sequence, N + b_m for a micro-batch of b_m candidates, would be wrong: a
    score would then depend on who else is scored, on padding, and on whether the
    history was encoded at once or extended.

    A pointwise sum over nothing is zero, so there is no start token: with an empty
    history a candidate reads itself alone.

    Source: Zhai et al. 2024 (arXiv 2402.17152), sections 3.2 and 3.4. The paper's
    equations have no normaliser; its authors' code divides by the padded length of the
    batch. What else differs is said in
    :class:`~recsys_edu.attention.pointwise.PointwiseBlock` and :class:`RelativeBias`.
    """

    def __init__(
        self, d: int, *, layers: int = 2, heads: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            PointwiseBlock(d, heads, dropout) for _ in range(layers)
        )
        self.biases = nn.ModuleList(RelativeBias(heads) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(d)

    def layers(self) -> Iterator[tuple[PointwiseBlock, RelativeBias]]:
        """Each block, and the bias under which its tokens read."""
        return zip(self.blocks, self.biases, strict=True)

    def encode_items(self, items: Tensor) -> Tensor:
        """Item clock: nothing to do, [..., d] -> [..., d]."""
        return items

    def encode_history(self, events: Events, context: Tensor) -> TimedCache:
        """Request clock: the blocks over the history, their keys and values kept.

        A long history goes through in chunks, each behind those before it: no tensor
        is N x N, and most of the pairs that the causal mask forbids are never made.
        """
        kept = None
        for first in range(0, max(events.mask.shape[1], 1), CHUNK):
            chunk = slice(first, first + CHUNK)
            timestamp = events.timestamp[:, : chunk.stop]
            kept = self._keys_values(events.vectors[:, chunk], timestamp, kept)
        allowed = readable(events.mask, events.visible)
        return TimedCache(*kept, allowed, events.timestamp, events.now)

    def extend(self, code: TimedCache, new: Events, context: Tensor) -> TimedCache:
        """Request clock: K new events through the blocks, O(l K d^2 + l K N d)."""
        mask = torch.cat([code.mask, new.mask.unsqueeze(1)], dim=-1)
        timestamp = torch.cat([code.timestamp, new.timestamp], dim=1)
        k, v = self._keys_values(new.vectors, timestamp, (code.k, code.v))
        return TimedCache(k, v, mask, timestamp, new.now)

    def at(self, code: TimedCache, now: Tensor) -> TimedCache:
        """Request clock: what is kept of the events knows no request's time."""
        return replace(code, now=now)

    def _keys_values(
        self,
        x: Tensor,
        timestamp: Tensor,
        past: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of the tokens of ``past`` and of x, in every layer.

        Padding is at the end, so column j is event j, and what an event may read is
        its own column and those before it, in every row of the batch.

        Args:
            x: [B, K, d], the last of T events.
            timestamp: [B, T], of all of them.
        """
        (k, t), device = (x.shape[1], timestamp.shape[1]), x.device
        x, since = self.dropout(x), t - k
        # How many events back: T - 1 .. -K, of which each event reads a window.
        back = bucket(t - 1 - torch.arange(t + k, device=device))
        back = back.unfold(0, t, 1)[:k].flip(0)  # [K, T]
        seconds = timestamp[:, since:].unsqueeze(-1) - timestamp.unsqueeze(1)
        rows = back * ROWS + bucket(seconds)  # [B, K, T]
        allowed = torch.ones(k, t, dtype=torch.bool, device=device).tril(since)
        n = torch.arange(since + 1, t + 1, device=device).unsqueeze(-1)

        def run(layer: int, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.blocks[layer](x, k, v, allowed, n, self.biases[layer](rows))

        return prefill(self.blocks, x, run, past)

    def fuse(self, items: Tensor, history: TimedCache) -> Tensor:
        """Candidate clock: M tokens through the blocks, reading the kept keys.

        All of them stand at one position and one time, so that a bias is needed for
        each event and not for each pair: [B, heads, 1, N], or M times that where each
        has a time or a prefix of its own. A row is what the kernel behind
        :func:`~recsys_edu.attention.kernels.candidate_attention` takes, on a GPU.
        """
        x = self.dropout(items.expand(len(history.mask), *items.shape[-2:]))
        n = history.mask.sum(-1, keepdim=True) + 1  # [B, 1 or M, 1], the position too
        position = torch.arange(1, history.mask.shape[-1] + 1, device=n.device)
        rows = relation(
            n - position, history.now.unsqueeze(-1) - history.timestamp.unsqueeze(1)
        )
        allowed, n = history.mask.unsqueeze(1), n.unsqueeze(1)
        for layer, (block, bias) in enumerate(self.layers()):
            k, v = history.k[:, layer], history.v[:, layer]
            x = block(x, k, v, allowed, n, bias(rows), bias.itself, attend_shared)
        return self.norm(x)

    def one_pass(self, items: Tensor, events: Events) -> Tensor:
        """Candidate clock: N + M tokens, O(l (N + M) d^2 + l (N + M)^2 d)."""
        batch, n = events.mask.shape
        items = items.expand(batch, *items.shape[-2:])
        m = items.shape[1]
        rule = masks.append(n, m, causal=True, reads_itself=True)
        keys = torch.cat([events.mask, events.mask.new_ones(batch, m)], dim=1)
        allowed = rule.dense(items.device) & keys.unsqueeze(1)  # [B, T, T]
        position = allowed.sum(-1, keepdim=True)  # [B, T, 1]
        time = torch.cat([events.timestamp, events.now.expand(batch, m)], dim=1)
        time = time.unsqueeze(-1)
        rows = relation(position - position.mT, time - time.mT)
        allowed, reads = allowed.unsqueeze(1), position.clamp(min=1).unsqueeze(1)
        x = self.dropout(torch.cat([events.vectors, items], dim=1))
        for block, bias in self.layers():
            x = block(x, *block.keys_values(x), allowed, reads, bias(rows))
        return self.norm(x)[:, n:]
