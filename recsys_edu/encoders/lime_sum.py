"""LIME whose events share themselves out among the links: a code that can forget.

In LIME-MHA a link's weights of the events sum to one, so each event's weight depends on
all the others. Here an event's weights of the *links* sum to one, so that it depends on
that event and the user alone. What links have read is then a plain sum over events: an
event more is a term more, and an event less is a term less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from recsys_edu.attention.precision import autocast_off, in_float32
from recsys_edu.attention.prefixes import add_prefixes
from recsys_edu.attention.softmax import CrossAttention
from recsys_edu.encoders.base import Events, readable
from recsys_edu.encoders.lime import Lime, LinkCode, Links
from recsys_edu.encoders.shared import once_a_prefix


@dataclass(frozen=True)
class SumLinks(LinkCode):
    """L^P of :class:`LimeSum`, and the sum it came from; None of M prefixes."""

    total: Tensor | None  # [B, heads, r, dh], in float32 at least
    count: Tensor | None  # [B, 1] int64, events in it, and one for the start


class LimeSum(Lime):
    """Each event shares itself out among the links; the links add up what they get.

    ::

        a_kj  = softmax over k of (q_k . k_j / sqrt(dh))       of each head, sum_k a = 1
        S_k   = a_k0 v_0 + sum_j a_kj v_j                      v_0: a learned start
        L^P_k = norm(L^C_k + W_o (r / (1 + N) S_k))

    with q of norm(L^C), and k and v of norm(E). Both S and N are sums over events, so
    :meth:`extend` adds new events, and :meth:`forget` takes old ones away, at the price
    of those events and of no other.

    The normaliser is a count, (1 + N) / r: the mean over the links of what they have to
    divide by, sum_j a_kj. That sum itself would make a mean of each link's own, but is
    near 0 where no event chose the link, and there it would divide what rounding leaves
    when events are forgotten by next to nothing. A count is exact, shared by all links,
    and with the start never 0; a link that nobody chose stays L^C.

    Source: weights that are normalised over the links are those of SequenceO1 (arXiv
    2609.08443), whose sketch is the bare sum A X; all else is LIME-MHA's.

    Example:
        >>> encoder = LimeSum(8, r=4).eval().double()
        >>> vectors, user = torch.rand(1, 5, 8).double(), torch.rand(1, 2, 8).double()
        >>> events = Events(vectors, torch.ones(1, 5, dtype=torch.bool))
        >>> old, new = (
        ...     events.map(lambda t: t[:, :2]),
        ...     events.map(lambda t: t[:, 2:]),
        ... )
        >>> code = encoder.encode_history(events, user)
        >>> rest = encoder.forget(code, old, user)
        >>> torch.allclose(rest.links, encoder.encode_history(new, user).links)
        True
    """

    def __init__(self, d: int, *, heads: int = 2, **links: Unpack[Links]) -> None:
        super().__init__(d, **links)
        self.start = nn.Parameter(torch.randn(d) * d**-0.5)
        self.attention = CrossAttention(d, heads)

    @once_a_prefix
    def encode_history(self, events: Events, context: Tensor) -> SumLinks:
        """Request clock: r weights of each event, and r sums, O(N d^2 + r N d)."""
        batch = len(events.mask)
        start = self.start.expand(batch, 1, -1)
        x = torch.cat([start, events.vectors], dim=1)
        mask = torch.cat([events.mask.new_ones(batch, 1), events.mask], dim=1)
        links = self.contextual(context)
        if events.visible is None:
            return self._code(links, self._sum(links, x, mask), _count(mask))
        seen = 1 + readable(events.mask, events.visible).sum(-1)  # [B, M]
        total = add_prefixes(*self._weights_values(links, x), seen)
        return SumLinks(self._links(links, total, seen), None, None)

    def extend(self, code: SumLinks, new: Events, context: Tensor) -> SumLinks:
        """Request clock: K new events in, O(K d^2 + r K d), whatever came before."""
        links = self.contextual(context)
        total = code.total + self._sum(links, new.vectors, new.mask)
        return self._code(links, total, code.count + _count(new.mask))

    def forget(self, code: SumLinks, old: Events, context: Tensor) -> SumLinks:
        """Request clock: K events out, O(K d^2 + r K d), whatever else there is.

        It equals ``encode_history`` of the others, if these were in the code, with
        these vectors: no sum can tell. So positions must not count from an end that
        moves. Rounding stays: after K events were added or taken, S is off by up to K
        roundings of the largest S on the way, which a new encoding takes away.

        Args:
            code: of histories that hold ``old``. It is left as it is.
            old: K events of each, any K, in any order; padding counts for nothing.
            context: as in :meth:`encode_history`.
        """
        links = self.contextual(context)
        total = code.total - self._sum(links, old.vectors, old.mask)
        return self._code(links, total, code.count - _count(old.mask))

    def _weights_values(self, links: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """L^C [B, r, d], events [B, T, d] -> a [B, heads, r, T], v [B, heads, T, dh].

        In float32 at least: what is added up must not round to the type of the model.
        """
        q = self.attention.queries(links)
        q, k, v = in_float32(q, *self.attention.keys_values(self.dropout(x)))
        with autocast_off(q):
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return scores.softmax(dim=-2), v

    def _sum(self, links: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        weights, v = self._weights_values(links, x)
        with autocast_off(v):
            return weights.masked_fill(~mask[:, None, None, :], 0.0) @ v

    def _code(self, links: Tensor, total: Tensor, count: Tensor) -> SumLinks:
        return SumLinks(self._links(links, total, count), total, count)

    def _links(self, links: Tensor, total: Tensor, count: Tensor) -> Tensor:
        """L^C [B, r, d], S [B, heads, S r, dh], 1 + N [B, S] -> L^P [B, S, r, d]."""
        r, sets = len(self.links), count.shape[1]
        share = (r / count).repeat_interleave(r, dim=1)[:, None, :, None]
        read = (total * share).to(links.dtype)
        update = self.dropout(self.attention.update(read)).unflatten(1, (sets, r))
        return self.norm(links.unsqueeze(1) + update)


def _count(mask: Tensor) -> Tensor:
    """[B, T] bool -> [B, 1] int64."""
    return mask.sum(-1, keepdim=True)
