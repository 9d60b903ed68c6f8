"""XOR attention: links read events and events read links, in time linear in N."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from recsys_edu.attention import masks
from recsys_edu.attention.kernels import xor_attend
from recsys_edu.attention.pointwise import PointwiseBlock


def xor_attention(
    block: PointwiseBlock,
    links: Tensor,
    events: Tensor,
    mask: Tensor,
    *,
    form: Literal["linear", "fused", "dense"] = "linear",
) -> tuple[Tensor, Tensor]:
    """One pointwise block over N events and r links under the XOR mask.

    Both kinds go through the same weights, and both read what the other kind was before
    the block. A link divides what it reads by its user's number of events (at least 1),
    an event by r: each by the number of keys it may read, which is a constant of the
    request. No token reads itself; its residual carries it. These are our choices: the
    paper leaves normaliser and diagonal open.

    ========  ===============================================  =====================
    form      how                                              largest tensor
    ========  ===============================================  =====================
    "dense"   [events; links] under the mask: the definition   heads (N + r)^2
    "linear"  two calls: links over events, events over links  N max(2 d, heads r)
    "fused"   both in one pass over the events, on a GPU       2 N d
    ========  ===============================================  =====================

    They are equal but for rounding; "dense" is the reference. "fused" is
    :func:`~recsys_edu.attention.kernels.xor_attend`, which off a GPU reads twice too.

    Args:
        block: the weights.
        links: [B, r, d].
        events: [B, N, d].
        mask: [B, N] bool, True where there is an event.

    Returns:
        Links [B, r, d] and events [B, N, d]; rows under padding mean nothing.

    Source: LIME (arXiv 2510.18239).
    """
    if form == "dense":
        return _dense(block, links, events, mask)
    if form == "fused":
        return _fused(block, links, events, mask)
    allowed, n = mask[:, None, None, :], mask.sum(-1).clamp(min=1)[:, None, None, None]
    return (
        block(links, *block.keys_values(events), allowed, n),
        read_links(block, events, links),
    )


def read_links(block: PointwiseBlock, events: Tensor, links: Tensor) -> Tensor:
    """The events' half: [B, N, d] reading links [B, r, d], O(N d^2 + r N d)."""
    return block(events, *block.keys_values(links), None, links.shape[1])


def _fused(
    block: PointwiseBlock, links: Tensor, events: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    tokens = links, events
    gates, queries = zip(*map(block.gate_queries, tokens), strict=True)
    heads = [(q, *block.keys_values(x)) for q, x in zip(queries, tokens, strict=True)]
    reads = xor_attend(*heads, mask)
    links, events = map(block.update, tokens, gates, reads)
    return links, events


def _dense(
    block: PointwiseBlock, links: Tensor, events: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    (batch, n), r = mask.shape, links.shape[1]
    x = torch.cat([events, links], dim=1)
    keys = torch.cat([mask, mask.new_ones(batch, r)], dim=1)
    allowed = masks.xor(n, r).dense(mask.device) & keys[:, None, None, :]
    keys_of_link = mask.sum(-1, keepdim=True).clamp(min=1)
    count = torch.cat(
        [torch.full_like(mask, r, dtype=torch.long), keys_of_link.expand(batch, r)],
        dim=1,
    )
    x = block(x, *block.keys_values(x), allowed, count[:, None, :, None])
    return x[:, n:], x[:, :n]
